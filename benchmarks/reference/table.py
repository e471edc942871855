"""The rows of the table, by name, and the run of them."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from . import data_rows, model_rows, probe_row, step_row, training_rows
from .bench import Bench, Rows
from .training_rows import Variant

ROWS: dict[str, Rows] = {
    "lists": data_rows.lists,
    "halves": data_rows.halves,
    "pixels": data_rows.pixels,
    "hand-written": model_rows.hand_written,
    "rates": model_rows.rates,
    "end": training_rows.training(Variant()),
    "middle": training_rows.training(Variant("middle")),
    "front": training_rows.training(Variant("front")),
    "class-specific": training_rows.training(Variant(csc=True)),
    "middle-class-specific": training_rows.training(Variant("middle", csc=True)),
    "words": training_rows.training(Variant(init="a photo of a")),
    "views": training_rows.training(Variant(views=True)),
    "checkpoint": model_rows.checkpoint,
    "interpretation": model_rows.interpretation,
    "probe": probe_row.probe,
    "step": step_row.step,
}


def run(names: Sequence[str], coop: Path, dassl: Path, data: Path | None) -> None:
    """Print the table; exits with 1 when a row could not run. A row that fails says why, and the others go on."""
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    print(", ".join([machine, *(f"{name} {version}" for name, version in versions.items())]) + "\n")
    print("| what | outcome | note |\n|---|---|---|", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(coop, dassl, Path(folder).resolve(), data)
        for name in names:
            started = time.perf_counter()
            try:
                for row in ROWS[name](bench):
                    print(f"| {row.what} | {row.outcome} | {row.note} |", flush=True)
            except Exception as error:
                failed += 1
                print(f"| {name} | did not run | {type(error).__name__}: {' '.join(str(error).split())[:300]} |", flush=True)
                if os.environ.get("COOP_DEBUG"):
                    raise
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    sys.exit(failed > 0)
