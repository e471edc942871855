"""The run folder: what a run was asked, where it stands, what it gave."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..learned.card import kept_card, model_card
from ..learned.safefile import write_atomically
from ..learning.fit import Fit
from ..machine import peak_memory
from ..settings import SETTINGS, changes, read_settings, to_toml
from ..version import __version__


def checkpoint_of(folder: Path) -> Path:
    """Where a run that is not done keeps its last whole epoch."""
    return folder / "checkpoint.safetensors"


def check_run(folder: Path, settings: dict[str, Any], overwrite: bool = False, free: Collection[str] = ()) -> None:
    """Make sure that a run of these settings may go on or begin in this folder; `overwrite` makes it begin anew.

    Those in `free` may be others than before. Raises UsageError, with the settings that differ, when the folder holds a
    run of other settings.
    """
    path = folder / SETTINGS
    if overwrite:
        checkpoint_of(folder).unlink(missing_ok=True)
    elif path.exists() or (folder / "prompt.safetensors").exists():
        try:
            before = read_settings(path)
        except UsageError:
            before = {}
        if before and ("methods" in before) != ("methods" in settings):
            what = "sweep" if "methods" in before else "fit"
            raise UsageError(f'"{folder}" holds the results of coop {what}; use another --output')
        if changed := changes(*({key: value for key, value in of.items() if key not in free} for of in (before, settings))):
            raise UsageError(f'"{folder}" holds a run of other settings ({"; ".join(changed)}); use --overwrite or --output')


def write_json(path: Path, content: Any) -> None:
    """Write a result file in one step. Raises CoopError when it cannot be written."""
    write_atomically(path, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def versions() -> dict[str, str]:
    """Of coop and of what its numbers depend on."""
    return {"coop": __version__, "torch": torch.__version__, "python": platform.python_version()}


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where a result file comes from: the command line, versions, the machine, and the memory taken at most, in bytes."""
    device = torch.device(device)
    program = Path(sys.argv[0]).name
    return {
        "command_line": shlex.join(["coop" if program == "__main__.py" else program, *sys.argv[1:]]),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {device.type}",
        "peak_memory": peak_memory(device),
    }


def begin_run(folder: Path, settings: dict[str, Any], command: str = "fit") -> None:
    """Write settings.toml, by which later commands know the run. Raises CoopError when it cannot be written."""
    for left_over in folder.glob(".*.partial"):  # by a process that was killed while it wrote
        left_over.unlink(missing_ok=True)
    text = f"# coop {command} --config {SETTINGS} repeats this run\n\n{to_toml(settings)}"
    write_atomically(folder / SETTINGS, text.encode())


def write_run(folder: Path, result: Fit, settings: dict[str, Any]) -> None:
    """Write what a run gave: metrics.json, log.jsonl, fewshot.json, the card README.md, and last prompt.safetensors.

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
        "metrics.json": json.dumps(metrics, indent=2),
        "log.jsonl": "\n".join(json.dumps(asdict(epoch)) for epoch in result.log),
        "fewshot.json": json.dumps(few_shot, indent=2, ensure_ascii=False),
    }
    for name, text in texts.items():
        write_atomically(folder / name, f"{text}\n".encode())
    card = kept_card(folder) or model_card(result.prompt, str(folder), metrics, settings)
    write_atomically(folder / "README.md", card.encode())
    result.prompt.save(folder / "prompt.safetensors")
    checkpoint_of(folder).unlink(missing_ok=True)
