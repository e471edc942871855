"""The folder of a run: its settings, its checkpoint and its results, written and read back."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..errors import CoopError, UsageError
from ..files import (
    CARD_FILE,
    CELLS_FOLDER,
    FEW_SHOT_FILE,
    LOG_FILE,
    METRICS_FILE,
    PROMPT_FILE,
    RESULT_FILE,
    SETTINGS_FILE,
    checkpoint_of,
    write_atomically,
)
from ..learned.card import kept_card, model_card
from ..learned.classifier import learned_features
from ..learned.prompt import LearnedPrompt, load_prompt
from ..learned.scores import Evaluation, Metrics
from ..learning.fit import Fit
from ..learning.training import EpochLog
from ..machine import peak_memory, versions
from ..names import distinct
from ..settings import changes, read_settings, to_toml
from .describe import describe
from .plots import plot_run


def check_run(folder: Path, settings: dict[str, Any], overwrite: bool = False, free: Collection[str] = ()) -> None:
    """Check that a run with these settings may start or resume in this folder; with `overwrite` it starts anew.

    Settings in `free` may differ from before. Raises UsageError, naming what differs, when the folder holds a run with other
    settings.
    """
    path = folder / SETTINGS_FILE
    if overwrite:
        checkpoint_of(folder).unlink(missing_ok=True)
    elif path.exists() or (folder / PROMPT_FILE).exists():
        try:
            before = read_settings(path)
        except UsageError:
            before = {}
        if before and ("methods" in before) != ("methods" in settings):
            what = "sweep" if "methods" in before else "fit"
            raise UsageError(f'"{folder}" holds the results of coop {what}; use another --output')
        if changed := changes(*({key: value for key, value in of.items() if key not in free} for of in (before, settings))):
            raise UsageError(f'"{folder}" holds a run of other settings ({"; ".join(changed)}); use --overwrite or --output')


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Say where a result file comes from: command line, versions, machine, and peak memory in bytes."""
    device = torch.device(device)
    program = Path(sys.argv[0]).name
    return {
        "command_line": shlex.join(["coop" if program == "__main__.py" else program, *sys.argv[1:]]),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {device.type}",
        "peak_memory": peak_memory(device),
    }


def begin_run(folder: Path, settings: dict[str, Any], command: str = "fit") -> None:
    """Write settings.toml, by which later commands recognise the run. Raises CoopError when it cannot be written."""
    for left_over in folder.glob(".*.partial"):  # by a process that was killed while it wrote
        left_over.unlink(missing_ok=True)
    text = f"# coop {command} --config {SETTINGS_FILE} repeats this run\n\n{to_toml(settings)}"
    write_atomically(folder / SETTINGS_FILE, text.encode())


def write_run(folder: Path, result: Fit, settings: dict[str, Any]) -> None:
    """Write the results of a run: metrics.json, log.jsonl, fewshot.json, the card README.md, and last prompt.safetensors.

    Raises CoopError when it cannot be written.
    """
    metrics: dict[str, Any] = {
        "learned": result.test.as_dict() if result.test else None,
        "hand_written": result.hand_written.as_dict() if result.hand_written else None,
        "skipped": result.skipped,
        "seconds": result.seconds,
        "few_shot_sha256": result.prompt.training["few_shot_sha256"],
        "fingerprint": result.prompt.fingerprint,
        "seed": result.data.seed,
        **provenance(result.prompt.training["device"]),
    }
    few_shot = {
        "train": [item.name for item in result.data.train],
        "val": [item.name for item in result.data.val],
    }
    texts = {
        METRICS_FILE: json.dumps(metrics, indent=2),
        LOG_FILE: "\n".join(json.dumps(asdict(epoch)) for epoch in result.log),
        FEW_SHOT_FILE: json.dumps(few_shot, indent=2, ensure_ascii=False),
    }
    for name, text in texts.items():
        write_atomically(folder / name, f"{text}\n".encode())
    card = kept_card(folder) or model_card(result.prompt, str(folder), metrics, settings)
    write_atomically(folder / CARD_FILE, card.encode())
    result.prompt.save(folder / PROMPT_FILE)
    checkpoint_of(folder).unlink(missing_ok=True)


def draw_run(folder: Path, result: Fit, backbone: Backbone, template: str, cache: FeatureCache) -> None:
    """Draw a run's figures into its folder: the confusion, and how similar learned and hand-written class features are."""
    names = result.data.class_names
    learned = learned_features(backbone, result.prompt, names, cache)
    cosines = learned @ hand_written_features(backbone, [template], names, cache).T
    plot_run(folder, result.data.dataset, names, result.test.metrics.confusion if result.test else None, cosines.tolist())


@dataclass(frozen=True)
class Run:
    """What a run folder of `coop fit` holds. `about` is what metrics.json says beside the accuracies."""

    folder: Path
    prompt: LearnedPrompt
    settings: dict[str, Any]
    learned: Evaluation | None
    hand_written: Evaluation | None
    log: tuple[EpochLog, ...]
    about: dict[str, Any]

    @property
    def gain(self) -> float | None:
        """Top-1 of the learned prompt less that of the hand-written one."""
        return self.learned.metrics.top1 - self.hand_written.metrics.top1 if self.learned and self.hand_written else None

    @property
    def variant(self) -> str:
        """How it was learned, in words that are equal for all seeds."""
        return f"{describe(self.prompt)}, {self.settings.get('recipe', 'own')} recipe"


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UsageError for one without a whole run, CoopError for a damaged one."""
    if folder.parent.name == CELLS_FOLDER and (folder / RESULT_FILE).is_file():
        raise UsageError(f'"{folder}" is one experiment of a sweep; report the whole sweep: "{folder.parent.parent}"')
    prompt, settings = load_prompt(folder), read_settings(folder / SETTINGS_FILE)
    try:
        about = json.loads((folder / METRICS_FILE).read_text("utf-8"))
        lines = (folder / LOG_FILE).read_text("utf-8").splitlines()
        learned, hand_written = (_evaluation(about.pop(kind)) for kind in ("learned", "hand_written"))
        return Run(folder, prompt, settings, learned, hand_written, tuple(map(_epoch, lines)), check_tables(about))
    except OSError as error:
        raise UsageError(f'"{error.filename}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(f'{METRICS_FILE} or {LOG_FILE} in "{folder}" is not what `coop fit` wrote') from error


def _evaluation(entry: dict[str, Any] | None) -> Evaluation | None:
    """The accuracies as `Evaluation.as_dict` wrote them; the single predictions are not kept."""
    if entry is None:
        return None
    names = tuple(map(str, entry["class_names"]))
    confusion = [[int(count) for count in row] for row in entry["confusion"]]
    shares = [entry["per_class"][name] for name in distinct(names)]
    per_class = [None if share is None else float(share) for share in shares]
    if [len(row) for row in confusion] != [len(names)] * len(names):
        raise ValueError("the confusion is not square")
    return Evaluation(
        names, (), [], [], Metrics(int(entry["n"]), float(entry["top1"]), float(entry["macro"]), per_class, confusion)
    )


def _epoch(line: str) -> EpochLog:
    entry = json.loads(line)
    return EpochLog(int(entry["epoch"]), int(entry["epochs"]), *(float(entry[key]) for key in ("lr", "loss", "accuracy")))


def check_tables(about: dict[str, Any]) -> dict[str, Any]:
    """Return what metrics.json or results.json says beside the accuracies. Raises ValueError where a table is not one."""
    if not all(isinstance(about.get(key, {}), dict) for key in ("versions", "seconds")):
        raise ValueError("versions and seconds are tables")
    return about
