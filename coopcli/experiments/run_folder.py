"""The folder of a run: its settings, its checkpoint and its results, written and read back."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

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
    remove_partials,
    write_atomically,
)
from ..learned.card import kept_card, model_card
from ..learned.prompt import LearnedPrompt, load_prompt
from ..learned.scores import Evaluation, Metrics
from ..learning.fit import Fit
from ..learning.training import EpochLog
from ..machine import peak_memory, versions
from ..names import distinct
from ..settings import RESOLVED, changes, read_settings, to_toml
from .contents import write_few_shot
from .describe import describe

logger = logging.getLogger(__name__)

IMAGES_DIGEST = "images-sha256"  # in the resolved settings: what the run learns from and is tested on, by content
DRAWN = (
    *(f"{name}.{form}" for name in ("learning", "confusion", "similarity", "mosaic") for form in ("png", "svg")),
    "report.html",
)  # made from a run's results


def check_run(folder: Path, settings: dict[str, Any], overwrite: bool = False, free: Collection[str] = ()) -> None:
    """Check that a run with these settings may start or resume in this folder; with `overwrite` it starts anew.

    Settings in `free` may differ from before. Raises UsageError, naming what differs, when the folder holds a run with other
    settings or on other images.
    """
    path = folder / SETTINGS_FILE
    if overwrite:
        checkpoint_of(folder).unlink(missing_ok=True)
        return
    if not path.exists() and not (folder / PROMPT_FILE).exists():
        return
    try:
        before = read_settings(path)
    except UsageError:
        before = {}
    if before and ("methods" in before) != ("methods" in settings):
        what = "sweep" if "methods" in before else "fit"
        raise UsageError(f'"{folder}" holds the results of coop {what}; use another --output')
    old, new = _compared(before, free), _compared(settings, free)
    digests = [old.pop(IMAGES_DIGEST, None), new.pop(IMAGES_DIGEST, None)]
    if changed := changes(old, new):
        raise UsageError(f'"{folder}" holds a run of other settings ({"; ".join(changed)}); use --overwrite or --output')
    if all(digests) and digests[0] != digests[1]:  # older versions of coop wrote none
        raise UsageError(
            f'"{folder}" holds a run on other images, labels or class names of "{settings.get("data")}"; '
            "use --overwrite or --output"
        )


def _compared(settings: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The settings that must not change, those in the table of resolved ones beside the others."""
    resolved = settings.get(RESOLVED)
    flat = {key: value for key, value in settings.items() if key != RESOLVED}
    flat |= resolved if isinstance(resolved, dict) else {}
    flat.setdefault("exif", False)  # runs of before there were such options
    flat.setdefault("keep-close", 0.0)
    if "methods" in flat:
        flat.setdefault("normalize", True)
    return {key: value for key, value in flat.items() if key not in free}


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
    """Write settings.toml, by which later commands recognise the run. Raises CoopError when it cannot be written.

    Earlier results go first, those of the same settings too: at no moment does the folder hold a mixture of two runs. The log
    of an unfinished run of the same settings stays.
    """
    text = f"# coop {command} --config {SETTINGS_FILE} repeats this run\n\n{to_toml(settings)}".encode()
    path = folder / SETTINGS_FILE
    try:
        remove_partials(folder)
        if (folder / PROMPT_FILE).exists() or (path.exists() and path.read_bytes() != text):
            remove_results(folder)
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    write_atomically(path, text)


def append_epoch(folder: Path, epoch: EpochLog) -> None:
    """Let log.jsonl grow by a finished epoch, for those who follow it; `write_run` writes it whole once more.

    Raises CoopError when it cannot be written.
    """
    try:
        with (folder / LOG_FILE).open("w" if epoch.epoch == 0 else "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")
    except OSError as error:
        raise CoopError(f'"{folder / LOG_FILE}" cannot be written: {error.strerror or error}') from error


def kept_run(folder: Path) -> Run | None:
    """Read the results of a run that is done; None where there are none, or they are damaged: then it is to be done again.

    Call it after `check_run`, which makes sure that they belong to the same settings and images. Older versions of coop did
    not note the images: those runs are done again.
    """
    if not (folder / PROMPT_FILE).is_file():
        return None
    try:
        run = read_run(folder)
    except CoopError as error:
        logger.warning("%s; training again", error)
        return None
    resolved = run.settings.get(RESOLVED)
    return run if run.log and isinstance(resolved, dict) and IMAGES_DIGEST in resolved else None


def remove_results(folder: Path) -> None:
    """Remove what a run gave, first the prompt: without it the folder counts as an unfinished run.

    A card that the user made their own stays.
    """
    own_card = [] if not (folder / CARD_FILE).exists() or kept_card(folder) else [CARD_FILE]
    for name in (PROMPT_FILE, METRICS_FILE, LOG_FILE, FEW_SHOT_FILE, *own_card, *DRAWN):
        (folder / name).unlink(missing_ok=True)


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
    card = kept_card(folder) or model_card(result.prompt, str(folder), metrics, settings)
    log = "\n".join(json.dumps(asdict(epoch)) for epoch in result.log)
    try:
        remove_results(folder)
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    write_atomically(folder / METRICS_FILE, f"{json.dumps(metrics, indent=2)}\n".encode())
    write_atomically(folder / LOG_FILE, f"{log}\n".encode())
    write_few_shot(folder, result.data)
    write_atomically(folder / CARD_FILE, card.encode())
    result.prompt.save(folder / PROMPT_FILE)
    checkpoint_of(folder).unlink(missing_ok=True)


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
    def finished(self) -> str:
        """The local date and time at which the prompt was written."""
        return f"{datetime.fromtimestamp((self.folder / PROMPT_FILE).stat().st_mtime):%Y-%m-%d %H:%M}"

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
        learned, hand_written = _evaluation(about.pop("learned")), _evaluation(about.pop("hand_written"))
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
    shares = [entry["per_class"][name] for name in distinct(names)]
    per_class = [None if share is None else checked_share(share) for share in shares]
    metrics = Metrics(int(entry["n"]), checked_share(entry["top1"]), checked_share(entry["macro"]), per_class, None)
    if "confusion" in entry:
        confusion = [[int(count) for count in row] for row in entry["confusion"]]
        if [len(row) for row in confusion] != [len(names)] * len(names):
            raise ValueError("the confusion is not square")
        metrics = replace(metrics, confusion=confusion)
    else:  # of so many classes that no matrix is kept
        places = {name: k for k, name in enumerate(distinct(names))}
        images = [int(entry["images"][name]) for name in places]
        hits = [int(entry["hits"][name]) for name in places]
        largest = [(places[row["true"]], places[row["predicted"]], int(row["images"])) for row in entry["largest_confusions"]]
        metrics = replace(metrics, images=images, hits=hits, largest=largest)
    return Evaluation(names, (), [], [], metrics)


def _epoch(line: str) -> EpochLog:
    entry = json.loads(line)
    return EpochLog(int(entry["epoch"]), int(entry["epochs"]), *(float(entry[key]) for key in ("lr", "loss", "accuracy")))


def checked_share(value: Any) -> float:
    """An accuracy from a file. Raises ValueError for anything else: NaN, 9350 %, a text."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError("an accuracy is a share from 0 to 1")
    return float(value)


def check_tables(about: dict[str, Any]) -> dict[str, Any]:
    """Return what metrics.json or results.json says beside the accuracies. Raises ValueError where a table is not one."""
    if not all(isinstance(about.get(key, {}), dict) for key in ("versions", "seconds")):
        raise ValueError("versions and seconds are tables")
    return about
