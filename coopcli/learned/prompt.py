"""The learned prompt on disk: one safetensors file, the context in float32 and all that is needed to use it."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from torch import Tensor

from ..choices import Position
from ..clip.prompts import ContextSettings
from ..errors import UsageError
from ..files import PROMPT_FILE, write_atomically
from .head import Head, head_of
from .origin import ORIGIN_CHECKS, Origin, exif_entry, origin_of
from .safefile import Checks, Contents, content_of, read

MAX_ROWS = 512  # of a context; OpenAI's models read 77 tokens, Long-CLIP 248


@dataclass(frozen=True, repr=False)
class LearnedPrompt(Origin):
    """A learned context, float32 [M, d] or class-specific [K, M, d], with what it was learned for and on."""

    context: Tensor
    settings: ContextSettings

    def __repr__(self) -> str:
        """The context's form, the classes and the model."""
        return f"<{type(self).__name__} {self.form}, {self}>"

    @property
    def form(self) -> str:
        """The context's form in words: 16 vectors, end."""
        own = " for each class" if self.settings.csc else ""
        return f"{self.settings.n_ctx} vectors{own}, {self.settings.position}"

    def content(self, path: str | os.PathLike[str] = PROMPT_FILE) -> bytes:
        """Make the bytes of the file. Raises CoopError for a prompt that could not be read again."""
        self.check_lengths()
        entry = {
            "model": self.model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            **exif_entry(self),
            "context": asdict(self.settings),
            "class_names": self.class_names,
            "folders": self.folders,
            "training": self.training,
        }
        return content_of(Path(path), entry, {"context": self.context}, _prompt_of)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step: it is there whole, or as it was before. Raises CoopError as `content` does."""
        write_atomically(Path(path), self.content(path))


def load_learned(path: Path) -> LearnedPrompt | Head:
    """Read a prompt or a head from its file or run folder. Nothing in the file is believed before it is checked.

    Raises UsageError for a path without such a file, CoopError for a file that contradicts itself.
    """
    contents = read(path)
    return head_of(contents) if "method" in contents.entry else _prompt_of(contents)


def load_prompt(path: Path) -> LearnedPrompt:
    """Read a prompt as `load_learned` does. Raises UsageError for a head, too."""
    learned = load_learned(path)
    if isinstance(learned, Head):
        raise UsageError(f'"{path}" holds a {learned.method} head, not a prompt; `coop eval` reads both')
    return learned


def _prompt_of(contents: Contents) -> LearnedPrompt:
    contents.check(_CHECKS)
    origin, settings = origin_of(contents), ContextSettings(**contents.entry["context"])
    n_classes = len(origin.class_names)
    width = len(contents.numbers) // (4 * math.prod(settings.shape(n_classes, 1)))  # what the numbers leave
    tensors = contents.tensors({"context": ("F32", list(settings.shape(n_classes, width)))})
    return LearnedPrompt(**vars(origin), context=tensors["context"], settings=settings)


def _is_context(entry: object) -> bool:
    if type(entry) is not dict or set(entry) != {"n_ctx", "position", "csc"}:
        return False
    n_ctx, csc = entry["n_ctx"], entry["csc"]
    return type(n_ctx) is int and 1 <= n_ctx <= MAX_ROWS and type(csc) is bool and entry["position"] in get_args(Position)


_CHECKS: Checks = {**ORIGIN_CHECKS, "context": _is_context}
