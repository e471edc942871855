"""Run folders and sweeps, read back from what was written into them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data.classnames import distinct
from ..data.fewshot import in_words
from ..errors import CoopError, UsageError
from ..learned.prompt import LearnedPrompt, load_prompt
from ..learned.scores import Metrics
from ..learning.training import EpochLog
from ..settings import SETTINGS, read_settings
from .experiment import Cell, Variant
from .summary import Line, Spread


@dataclass(frozen=True)
class Scores:
    """Accuracies among some classes."""

    names: tuple[str, ...]
    metrics: Metrics


@dataclass(frozen=True)
class Run:
    """What a run folder of `coop fit` holds. `about` is what metrics.json says beside the accuracies."""

    folder: Path
    prompt: LearnedPrompt
    settings: dict[str, Any]
    learned: Scores | None
    hand_written: Scores | None
    log: tuple[EpochLog, ...]
    about: dict[str, Any]

    @property
    def gain(self) -> float | None:
        """Top-1 of the learned prompt less that of the hand-written one."""
        return self.learned.metrics.top1 - self.hand_written.metrics.top1 if self.learned and self.hand_written else None

    @property
    def variant(self) -> str:
        """How it was learned, all but the seed."""
        told, context = self.prompt.training, self.prompt.settings
        words = [in_words(told.get("shots")), f"M = {context.n_ctx}", context.position]
        words += ["class-specific"] if context.csc else []
        words += [f'from "{told["init"]}"'] if told.get("init") else []
        return ", ".join([*words, f"{self.settings.get('recipe', 'own')} recipe"])


@dataclass(frozen=True)
class Sweep:
    """What the folder of `coop sweep` holds: lines over the seeds, and each result."""

    folder: Path
    lines: list[Line]
    results: list[dict[str, Any]]
    settings: dict[str, Any]
    about: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UsageError for one without a whole run, CoopError for a damaged one."""
    if folder.parent.name == "cells" and (folder / "result.json").is_file():
        raise UsageError(f'"{folder}" is one experiment of a sweep: report "{folder.parent.parent}"')
    prompt, settings = load_prompt(folder), read_settings(folder / SETTINGS)
    try:
        about = json.loads((folder / "metrics.json").read_text("utf-8"))
        lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
        learned, hand_written = (_scores(about.pop(kind)) for kind in ("learned", "hand_written"))
        return Run(folder, prompt, settings, learned, hand_written, tuple(map(_epoch, lines)), _about(about))
    except OSError as error:
        raise UsageError(f'"{error.filename}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(f'metrics.json or log.jsonl in "{folder}" is not what `coop fit` wrote') from error


def _scores(found: dict[str, Any] | None) -> Scores | None:
    if found is None:
        return None
    names = tuple(map(str, found["class_names"]))
    confusion = [[int(count) for count in row] for row in found["confusion"]]
    per_class = [None if share is None else float(share) for share in (found["per_class"][name] for name in distinct(names))]
    if [len(row) for row in confusion] != [len(names)] * len(names):
        raise ValueError("the confusion is no square")
    return Scores(names, Metrics(int(found["n"]), float(found["top1"]), float(found["macro"]), per_class, confusion))


def _epoch(line: str) -> EpochLog:
    found = json.loads(line)
    return EpochLog(int(found["epoch"]), int(found["epochs"]), *(float(found[key]) for key in ("lr", "loss", "accuracy")))


def _about(found: dict[str, Any]) -> dict[str, Any]:
    """The rest of metrics.json or results.json. Raises ValueError where a table is none."""
    if not all(isinstance(found.get(key, {}), dict) for key in ("versions", "seconds")):
        raise ValueError("no table")
    return found


def read_sweep(folder: Path) -> Sweep:
    """Read the results.json of a sweep. Raises CoopError for one that is damaged."""
    path = folder / "results.json"
    try:
        about = _about(json.loads(path.read_text("utf-8")))
        lines, results, settings = (about.pop(key) for key in ("summary", "results", "settings"))
        return Sweep(folder, [_line(row) for row in lines], [dict(row) for row in results], dict(settings), about)
    except OSError as error:
        raise CoopError(f'"{path}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(f'"{path}" is not what `coop sweep` wrote') from error


def _line(row: dict[str, Any]) -> Line:
    """The line that a row of results.json's summary was made of."""

    def spread(name: str) -> Spread | None:
        return None if row[name] is None else Spread(float(row[name]), float(row[f"{name}_std"]), int(row[f"{name}_seeds"]))

    variant = None if row["position"] is None else Variant(**{entry.name: row[entry.name] for entry in fields(Variant)})
    cell = Cell(str(row["method"]), str(row["model"]), None if row["shots"] == "all" else int(row["shots"]), 0, variant)
    spreads = {name: spread(name) for name in ("top1", "macro", "new", "harmonic")}
    return Line(cell, int(row["seeds"]), seconds=float(row["seconds"]), parameters=int(row["parameters"]), **spreads)
