"""The files that coop writes: their names, each of which stands here once, and writing in one step."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import CoopError

RUNS_FOLDER = "coop-runs"  # where runs are written by default; never taken for a class
PROMPT_FILE = "prompt.safetensors"
HEAD_FILE = "head.safetensors"  # a classifier of another method than CoOp
TUNED_FOLDER = "model"  # beside a head: the image encoder that was trained with it
CHECKPOINT_FILE = "checkpoint.safetensors"  # of a run that is not done: its last whole epoch
SETTINGS_FILE = "settings.toml"
METRICS_FILE = "metrics.json"
LOG_FILE = "log.jsonl"
FEW_SHOT_FILE = "fewshot.json"
CARD_FILE = "README.md"
CELLS_FOLDER = "cells"  # of a sweep: a folder for each experiment
RESULT_FILE = "result.json"  # of one experiment
RESULTS_FILE = "results.json"  # of a sweep; .csv and .md lie beside it


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or Ctrl-C never meets half of it. Raises CoopError when it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CoopError(f'"{path}" cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a result file in one step. Raises CoopError when it cannot be written."""
    write_atomically(path, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def checkpoint_of(folder: Path) -> Path:
    """Where a run that is not done keeps its last whole epoch."""
    return folder / CHECKPOINT_FILE


def csv_of(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of the same keys as CSV; None is an empty field."""
    text = io.StringIO()
    rows = list(rows)
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
