"""Memory, time and output of coop's commands among thousands of classes, on drawn pictures, with `mini`.

    python benchmarks/many_classes.py [CLASSES ...]      # default: 100 4000 21841, as many as ImageNet-21k; minutes
    python benchmarks/many_classes.py 21841 --only fit,report

Each class has an image to learn from and one to test on; of all images, 200 differ, so that most time goes into what grows
with the classes. As in ImageNet-21k, folders have ids, and `--classnames` gives the names, of which one in twelve is that of
an earlier class. `eval`, `predict` and `interpret` take prompts of random numbers: what those say does not matter here. Each
command runs in a process of its own, with an empty cache before the first of them. Processor seconds count all processes of
the command; peak memory is that of the largest. "Printed" is what a command writes to stdout and stderr, where these are no
terminal; "files" are those that it leaves, the largest ones named.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 200
REPEATED = 1_773 / 21_841  # of ImageNet-21k's first lemmas, those that are the name of an earlier class, too
SMALL = 100_000  # bytes of a file that is not worth a mention


def names_of(classes: int, words: list[str]) -> list[str]:
    """Names of one to three of these words, some of them repeated."""
    choose = random.Random(1)
    names: list[str] = []
    different: set[str] = set()
    while len(names) < classes:
        name = " ".join(choose.choices(words, k=choose.choices([1, 2, 3], [2, 5, 2])[0]))
        if names and choose.random() < REPEATED:
            names.append(choose.choice(names))
        elif name not in different:
            different.add(name)
            names.append(name)
    return names


def write_data(folder: Path, classes: int) -> None:
    """Write pictures, a table of them, names for their classes, and a prompt of each kind for these."""
    from coopcli.clip.backbone import load_backbone
    from coopcli.clip.prompts import ContextSettings, random_context
    from coopcli.clip.tokens import whole_words
    from coopcli.learned.prompt import LearnedPrompt

    noise = np.random.default_rng(0)
    (folder / "source").mkdir()
    for number in range(PICTURES):
        picture = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(folder / "source" / f"{number}.png")
    backbone = load_backbone("mini", device="cpu")
    names, ids = names_of(classes, list(whole_words(backbone.tokenizer).values())), [f"n{n:08}" for n in range(classes)]
    rows = ["path,label,split\n"]
    for number, folder_name in enumerate(ids):
        for split in ("train", "test"):
            os.link(folder / "source" / f"{(number + len(split)) % PICTURES}.png", folder / f"{split}-{number}.png")
            rows.append(f"{split}-{number}.png,{folder_name},{split}\n")
    (folder / "list.csv").write_text("".join(rows))
    (folder / "names.tsv").write_text("".join(f"{one}\t{name}\n" for one, name in zip(ids, names, strict=True)))
    about = {"model": "mini", "revision": None, "fingerprint": backbone.fingerprint, "training": {}}
    for csc in (False, True):
        settings = ContextSettings(csc=csc)
        context = random_context(settings, classes, backbone.token_width, seed=1)
        prompt = LearnedPrompt(context=context, settings=settings, class_names=tuple(names), folders=tuple(ids), **about)
        prompt.save(folder / f"{'own' if csc else 'one'}.safetensors")


DATA = ["list.csv", "--classnames", "names.tsv"]
# One step, over all images: what grows with the classes is the cost of a step, and what a step of so many images keeps.
FIT = ["fit", *DATA, "--model", "mini", "--shots", "1", "--views", "1", "--epochs", "1", "--batch-size", "0", "-o"]
COMMANDS = {
    "zeroshot": ["zeroshot", *DATA, "--model", "mini"],
    "eval": ["eval", "one.safetensors", *DATA],
    "eval, class-specific": ["eval", "own.safetensors", *DATA],
    "predict": ["predict", "one.safetensors", "source", "--csv"],
    "interpret": ["interpret", "one.safetensors"],
    "interpret --json": ["interpret", "one.safetensors", "--json"],
    "interpret, class-specific": ["interpret", "own.safetensors"],
    "interpret --json, class-specific": ["interpret", "own.safetensors", "--json"],
    "fit": [*FIT, "run"],
    "fit --csc": [*FIT, "run-csc", "--csc"],
    "report": ["report", "run"],
    "report, class-specific": ["report", "run-csc"],
}

MEASURED = """
import resource, subprocess, sys
with open("printed", "wb") as printed:
    done = subprocess.run([sys.executable, "-m", "coopcli", *sys.argv[1:]], stdout=printed, stderr=subprocess.STDOUT)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files that commands leave: those of run folders."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.glob("run*/*") if path.is_file()}


def measured(folder: Path, command: list[str]) -> str:
    """Run a command; returns processor seconds, peak MiB, bytes printed and bytes of files, as cells of a row."""
    environment, before = os.environ | {"COOP_CACHE": str(folder / "cache")}, sizes(folder)
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, check=True
    )
    code, seconds, peak = map(float, process.stdout.split())
    if code:
        raise SystemExit((folder / "printed").read_text())
    new = {name: size for name, size in sizes(folder).items() if name not in before}
    large = ", ".join(f"{Path(name).name} {size / 1e6:.1f}" for name, size in new.items() if size > SMALL)
    files = f"{sum(new.values()) / 1e6:.1f}{f' ({large})' if large else ''}" if new else ""
    peak /= 1 << (20 if sys.platform == "darwin" else 10)
    return f"{seconds:.0f} | {peak:,.0f} | {(folder / 'printed').stat().st_size / 1e3:,.1f} | {files}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", metavar="CLASSES", type=int, nargs="*", default=[100, 4000, 21841])
    parser.add_argument("--only", metavar="COMMANDS", help="of these rows, by commas; `report` needs `fit` before it")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="leave what the last number of classes gave here")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(COMMANDS)
    print(
        "| classes | command | processor seconds | peak MiB | printed, kB | files, MB |\n|---|---|---|---|---|---|", flush=True
    )
    for classes in options.classes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_data(folder, classes)
            for name, command in COMMANDS.items():
                if name in wanted or name.partition(",")[0] in wanted:
                    print(f"| {classes:,} | `{name}` | {measured(folder, command)} |", flush=True)
            if options.keep:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
