"""How long a command takes when all it needs is in the cache, against importing the libraries that it cannot do without.

    python benchmarks/warm.py [--rounds 5] [--model FOLDER]

Each round runs a command and its yardstick one after the other; the figures are medians. CPU seconds (user and system) are
those of the process and what it starts: on a machine that does other work, they vary less than the time on the clock.
"""

from __future__ import annotations

import argparse
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from coopcli.demo.satellites import unpack_satellites

COOP = [sys.executable, "-m", "coopcli"]
LIBRARIES = [sys.executable, "-c", "import torch, safetensors, PIL"]
CLIP = [sys.executable, "-c", "from transformers import CLIPModel"]


def run(command: Sequence[str]) -> tuple[float, float]:
    """CPU and clock seconds of a command. Raises CalledProcessError where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if process.returncode or os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command, stderr=errors)
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - started


def first_sign(command: Sequence[str]) -> float:
    """Clock seconds until a command writes the first byte to its terminal's stderr."""
    ours, theirs = pty.openpty()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.read(ours, 1)
    seconds = time.perf_counter() - started
    process.terminate()
    process.wait()
    os.close(ours)
    os.close(theirs)
    return seconds


def new_picture(path: Path, seed: int) -> str:
    """Write a picture that no cache knows."""
    small = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="mini")
    options = parser.parse_args()
    # An installed coop is compiled once, as the libraries are; from a checkout, that is what the first run of a row does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as place:
        os.environ["COOP_CACHE"] = f"{place}/cache"
        folder, prompt = Path(place), f"{place}/run"
        data, picture = str(folder / "satellites"), folder / "new.jpg"
        unpack_satellites(Path(data))
        run([*COOP, "fit", data, "--model", options.model, "--shots", "1", "--epochs", "1", "--no-plot", "--output", prompt])
        rows = {
            "eval": (["eval", prompt, data], LIBRARIES, 1.35),
            "zeroshot": (["zeroshot", data, "--model", options.model], LIBRARIES, 1.35),
            "ensemble": (["ensemble", data, "--model", options.model], LIBRARIES, 1.35),
            "interpret": (["interpret", prompt], LIBRARIES, 1.35),
            "predict, a new image": (["predict", prompt, new_picture(picture, 0)], CLIP, 1.15),
        }
        print("| command | CPU s | yardstick, CPU s | ratio | at most | clock s |\n|---|---|---|---|---|---|", flush=True)
        for name, (arguments, yardstick, bar) in rows.items():
            run([*COOP, *arguments])
            ours, theirs = [], []
            for number in range(options.rounds):
                if "new" in name:
                    new_picture(picture, number + 1)
                ours.append(run([*COOP, *arguments]))
                theirs.append(run(yardstick)[0])
            cpu, clock = (statistics.median(values) for values in zip(*ours, strict=True))
            least = statistics.median(theirs)
            print(f"| {name} | {cpu:.2f} | {least:.2f} | {cpu / least:.2f} | {bar} | {clock:.2f} |", flush=True)
        signs = [first_sign([*COOP, "zeroshot", data, "--model", options.model]) for _ in range(options.rounds)]
        print(f"\nfirst sign of life on a terminal: {statistics.median(signs):.2f} s on the clock, at most 0.4")


if __name__ == "__main__":
    main()
