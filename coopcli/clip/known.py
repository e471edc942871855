"""What is known of a model without loading it, kept in the cache under the state of the model's files.

A model folder is known by the path, size and times of change of each of its files: whatever changes one of these has it
loaded and hashed again. Bytes changed within a file whose size and times stay the same cannot be told apart from before.
A model of the hub is known by its commit, which is a folder of the hub's cache. Models of open_clip are always loaded.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..choices import MINI
from ..hub import prepare_hub
from ..names import OPEN_CLIP
from ..version import __version__
from .cache import FeatureCache
from .pixels import Preprocessing

MINI_FOLDER = Path(__file__).parents[1] / "mini"
COMMIT = re.compile("[0-9a-f]{40}")
# A file that changed this many seconds ago, or less, may change again within one tick of its file system's clock.
SETTLED = 2.0
WEIGHTS = (".safetensors", ".bin")
MOST_FILES = 1000  # of a folder; one with more holds other things than a model
ELSEWHERE = "adapter_config.json"  # lets transformers read the files of another folder, too


@dataclass(frozen=True)
class Facts:
    """What classifying with cached features needs to know of a model, and encoding images beside its weight file."""

    fingerprint: str
    logit_scale: float
    logit_bias: float | None
    feature_width: int
    token_width: int
    preprocessing: Preprocessing
    tower_settings: dict[str, Any] | None


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder on this machine, its commit on the hub (None for a local folder), and the state of its files.

    The state is None where files are missing, or where others than those of the folder may belong to the model.
    """

    folder: Path
    commit: str | None
    state: list[list[Any]] | None

    def about(self, allow_pickle: bool) -> list[Any]:
        """What facts are kept under: files, and the software that reads them."""
        software = [__version__, *(version(package) for package in ("transformers", "tokenizers"))]
        return ["model 2", *software, str(self.folder), allow_pickle, self.state]

    @property
    def settled(self) -> bool:
        """Whether the files changed long enough ago for another change to show in their times."""
        newest = max((max(times) for *_, times in self.state or []), default=0)
        return newest < (time.time() - SETTLED) * 1e9


def find_files(name: str, revision: str | None) -> ModelFiles | None:
    """Find a model's files without reading them; None for a model of open_clip, or one that is not here."""
    if name.startswith(OPEN_CLIP):
        return None
    folder, commit = MINI_FOLDER if name == MINI else Path(name), None
    if not folder.exists():
        snapshot = _snapshot(name, revision)
        if snapshot is None:
            return None
        folder, commit = snapshot, snapshot.name
    try:
        state = _state(folder)
    except OSError:
        return None
    return ModelFiles(folder.absolute(), commit, state)


def _state(folder: Path) -> list[list[Any]] | None:
    """Name, size and times in nanoseconds of each file, links followed. Raises OSError for what cannot be looked at."""
    state: list[list[Any]] = []
    for place, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = any(Path(place, name).is_symlink() for name in folders)  # which os.walk does not enter
        if linked or len(state) + len(files) > MOST_FILES or ELSEWHERE in files:
            return None
        for path in (Path(place, name) for name in files):
            about = path.stat()
            state.append([str(path.relative_to(folder)), about.st_size, [about.st_mtime_ns, about.st_ctime_ns]])
    return sorted(state) if any(name.endswith(WEIGHTS) for name, *_ in state) else None


def _fail(error: OSError) -> None:
    raise error


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub's model at a revision; the hub is asked only for what a branch or tag stands for."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        if revision and COMMIT.fullmatch(revision):
            config = try_to_load_from_cache(name, "config.json", revision=revision)
        else:
            prepare_hub()
            config = hf_hub_download(name, "config.json", revision=revision)
    except Exception:  # loading the model will say why
        return None
    return Path(config).parent if isinstance(config, str) else None


def recall(cache: FeatureCache, files: ModelFiles | None, allow_pickle: bool) -> Facts | None:
    """Get the facts of a model whose files have not changed since they were kept."""
    if files is None or files.state is None:
        return None
    known = cache.recall(files.about(allow_pickle))
    return Facts(**known | {"preprocessing": Preprocessing(**known["preprocessing"])}) if known else None


def remember(
    cache: FeatureCache, before: ModelFiles | None, after: ModelFiles | None, facts: Facts, allow_pickle: bool
) -> None:
    """Keep the facts of a model that was loaded between two looks at its files, unless these changed then or just before.

    Files of a commit do not change; but before the first load some of them may not have been here yet.
    """
    if after and after.state and (after.commit or (after == before and after.settled)):
        cache.remember(after.about(allow_pickle), asdict(facts))
