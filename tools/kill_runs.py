"""Kill `coop fit` (SIGKILL) at random moments of its life, start the same command again, and compare the learned prompts.

    python tools/kill_runs.py --kills 100 --seed 1

Prints in which phase the kills fell and how many files differ from those of an uninterrupted run (exit 1 if any does).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from coopcli.demo.tasks import write_task

EPOCHS = 300


def command(work: Path) -> list[str]:
    how = ["--model", "mini", "--shots", "4", "--views", "2", "--epochs", str(EPOCHS)]
    return [sys.executable, "-m", "coopcli", "fit", str(work / "photos"), *how, "-o", str(work / "run")]


def start(work: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "COOP_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    with (work / "told").open("wb") as told:  # no pipe, which nobody would empty
        return subprocess.Popen(command(work), env=environment, stdout=subprocess.DEVNULL, stderr=told)


def wait(process: subprocess.Popen[bytes], work: Path) -> bool:
    """Returns whether the process was killed. Raises SystemExit when it failed."""
    if process.wait() not in (0, -signal.SIGKILL):
        raise SystemExit(f"the command failed: {(work / 'told').read_text('utf-8')}")
    return process.returncode != 0


def finish(work: Path) -> bytes:
    if wait(start(work), work):
        raise SystemExit("the command was killed by somebody else")
    return (work / "run" / "prompt.safetensors").read_bytes()


def phase(run: Path) -> str:
    if (run / "prompt.safetensors").exists():
        return "saved"
    if (run / "checkpoint.safetensors").exists():
        return "training"
    return "before the first epoch"


def check_whole(run: Path) -> None:
    """Every file of a killed run is there whole or not at all."""
    from safetensors import safe_open

    for path in run.glob("*.json"):
        json.loads(path.read_text("utf-8"))
    for path in run.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            file.get_tensor("context")


def wait_for_epochs(process: subprocess.Popen[bytes], run: Path, epochs: int) -> None:
    """Until the process has written so many checkpoints, or is done."""
    path, written, seen = run / "checkpoint.safetensors", 0, 0
    if path.exists():
        written = path.stat().st_mtime_ns
    while seen < epochs and process.poll() is None:
        time.sleep(0.001)
        with contextlib.suppress(FileNotFoundError):
            if (now := path.stat().st_mtime_ns) != written:
                written, seen = now, seen + 1


def kill_and_resume(work: Path, kills: int, seed: int) -> tuple[Counter[str], int]:
    """Returns where the kills fell, and how many finished runs differ from the uninterrupted one.

    Every second kill falls at any moment of the command's life, the others some epochs into its training: what part of
    its life that is differs from machine to machine.
    """
    choose = random.Random(seed)
    run = work / "run"
    write_task(work / "photos", "shapes", 6, seed=(9,))
    began = time.perf_counter()
    expected = finish(work)
    life = time.perf_counter() - began
    fell: Counter[str] = Counter()
    different = 0
    shutil.rmtree(run)
    shutil.rmtree(work / "cache")
    for kill in range(kills):
        process = start(work)
        if kill % 2:
            wait_for_epochs(process, run, choose.randint(1, EPOCHS // 10))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(choose.uniform(0, life))
        process.kill()
        fell[phase(run) if wait(process, work) else "after its end"] += 1
        check_whole(run)
        if (run / "prompt.safetensors").exists():  # compare, and begin anew, sometimes with no features either
            different += (run / "prompt.safetensors").read_bytes() != expected
            shutil.rmtree(run)
            if choose.random() < 0.5:
                shutil.rmtree(work / "cache")
    different += finish(work) != expected
    different += len(list(run.glob(".*.partial")))
    return fell, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fell, different = kill_and_resume(Path(folder), options.kills, options.seed)
    print(f"{options.kills} kills: {dict(fell)}; {different} differences")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
