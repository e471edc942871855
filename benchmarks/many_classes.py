"""Memory and time of `coop zeroshot`, `eval` and `predict` among thousands of classes, on drawn pictures, with `mini`.

    python benchmarks/many_classes.py [CLASSES ...]      # default: 100 4000 20000; minutes on two cores

Each class has one image; of the images, 200 differ, so that most time goes into what grows with the classes. The prompt's
context is random: what it says does not matter here. Each command runs in a process of its own, with an empty cache before
the first of them. Processor seconds count all processes of the command; peak memory is that of the largest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 200
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvz" for vowel in "aeiou"]


def write_data(folder: Path, classes: int) -> list[str]:
    """Write pictures, a table of them and a prompt for their classes; returns the class names."""
    from coopcli.clip.backbone import load_backbone
    from coopcli.clip.prompts import ContextSettings, random_context
    from coopcli.learned.prompt import LearnedPrompt

    random = np.random.default_rng(0)
    (folder / "source").mkdir()
    for number in range(PICTURES):
        picture = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(folder / "source" / f"{number}.png")
    names = ["".join(parts) for parts in itertools.islice(itertools.product(SYLLABLES, repeat=4), classes)]
    for number in range(classes):
        os.link(folder / "source" / f"{number % PICTURES}.png", folder / f"{number}.png")
    rows = [f"{number}.png,{name}\n" for number, name in enumerate(names)]
    (folder / "list.csv").write_text("path,label\n" + "".join(rows))
    backbone = load_backbone("mini", device="cpu")
    settings = ContextSettings()
    about = {"model": "mini", "revision": None, "fingerprint": backbone.fingerprint, "training": {}}
    context = random_context(settings, classes, backbone.token_width, seed=1)
    prompt = LearnedPrompt(context=context, settings=settings, class_names=tuple(names), folders=tuple(names), **about)
    prompt.save(folder / "prompt.safetensors")
    return names


MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "coopcli", *sys.argv[1:]], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def measured(folder: Path, *command: str) -> tuple[float, float]:
    """Processor seconds and peak MiB of a command."""
    environment = os.environ | {"COOP_CACHE": str(folder / "cache")}
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, check=True
    )
    code, seconds, peak = map(float, process.stdout.split())
    assert code == 0, command
    return seconds, peak / (1 << (20 if sys.platform == "darwin" else 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", metavar="CLASSES", type=int, nargs="*", default=[100, 4000, 20000])
    commands = {
        "zeroshot": ("zeroshot", "list.csv", "--model", "mini", "-q"),
        "eval": ("eval", "prompt.safetensors", "list.csv", "-q"),
        "predict": ("predict", "prompt.safetensors", "source", "--csv", "-q"),
    }
    print("| classes and images | command | processor seconds | peak MiB |\n|---|---|---|---|", flush=True)
    for classes in parser.parse_args().classes:
        with tempfile.TemporaryDirectory() as temporary:
            write_data(Path(temporary), classes)
            for name, command in commands.items():
                seconds, peak = measured(Path(temporary), *command)
                print(f"| {classes:,} | `{name}` | {seconds:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
