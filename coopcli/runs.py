"""The run folder: what a run was asked, where it stands, what it gave."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .artifact import write_atomically
from .errors import UsageError
from .fitting import Fit
from .version import __version__


def checkpoint_of(folder: Path) -> Path:
    """Where a run that is not done keeps its last whole epoch."""
    return folder / "checkpoint.safetensors"


def check_run(folder: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
    """Make sure that a run of these settings may go on or begin in this folder; `overwrite` makes it begin anew.

    Raises UsageError, with the settings that differ, when the folder holds a run of other settings.
    """
    path = folder / "settings.json"
    if overwrite:
        checkpoint_of(folder).unlink(missing_ok=True)
    elif path.exists() or (folder / "prompt.safetensors").exists():
        try:
            before = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            before = {}
        changed = [f"{key}: {before.get(key)} -> {settings[key]}" for key in settings if before.get(key) != settings[key]]
        if changed:
            raise UsageError(f'"{folder}" holds a run of other settings ({"; ".join(changed)}); use --overwrite or --output')


def begin_run(folder: Path, settings: dict[str, Any]) -> None:
    """Write settings.json, by which later commands know the run. Raises CoopError when it cannot be written."""
    for left_over in folder.glob(".*.partial"):  # by a process that was killed while it wrote
        left_over.unlink(missing_ok=True)
    write_atomically(folder / "settings.json", f"{json.dumps(settings, indent=2, ensure_ascii=False)}\n".encode())


def write_run(folder: Path, result: Fit) -> None:
    """Write what a run gave: metrics.json, log.jsonl, fewshot.json, and last prompt.safetensors.

    Raises CoopError when it cannot be written.
    """
    metrics: dict[str, Any] = {
        "learned": result.test.as_dict() if result.test else None,
        "hand_written": result.hand_written.as_dict() if result.hand_written else None,
        "seconds": result.seconds,
        "few_shot_sha256": result.prompt.training["few_shot_sha256"],
        "fingerprint": result.prompt.fingerprint,
        "versions": {"coop": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    few_shot = {
        "train": [item.name for item in result.data.train],
        "val": [item.name for item in result.data.val],
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=2),
        "log.jsonl": "\n".join(json.dumps(asdict(epoch)) for epoch in result.log),
        "fewshot.json": json.dumps(few_shot, indent=2, ensure_ascii=False),
    }
    for name, text in texts.items():
        write_atomically(folder / name, f"{text}\n".encode())
    result.prompt.save(folder / "prompt.safetensors")
    checkpoint_of(folder).unlink(missing_ok=True)
