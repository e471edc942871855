"""Make the pictures of README.md: what `coop fit` and `coop predict` show in a terminal, and the curves of a small sweep.

    python tools/screenshots.py [FOLDER]

Draws the demo task `marks` and learns on it with the embedded model: some minutes on two cores. Writes fit.svg and
curves.svg to FOLDER, docs/images by default. Needs the extra sweep.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from coopcli.demo.tasks import TEST, TRAIN, write_task

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH = 88  # columns
SHOWN = ("coop fit marks --model mini --output runs/marks", "coop predict runs/marks inbox --top 2")
SWEEP = "coop sweep marks --model mini --methods zeroshot,ensemble,linear-probe,coop --output runs/sweep"
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # which rich would have fetched from another server
IDENTIFIERS = re.compile(r"terminal-\d+")  # which rich makes from the text; one name keeps differences small


def run(command: str, folder: Path) -> str:
    """What a coop command leaves in a terminal of WIDTH columns, with its colours: no progress."""
    terminal = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COOP_CACHE": str(folder / "cache")}
    words = [sys.executable, "-m", "coopcli", *shlex.split(command)[1:]]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
    return done.stdout


def picture(commands: list[tuple[str, str]]) -> str:
    """Commands and what each printed as an SVG picture of a terminal."""
    with Path(os.devnull).open("w") as nowhere:
        screen = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        for command, printed in commands:
            screen.print(Text.assemble(("$ ", "bold green"), command))
            screen.print(Text.from_ansi(printed))
    return IDENTIFIERS.sub("terminal", FONTS.sub("", screen.export_svg(title="coop")))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_task(work / "marks" / "train", "marks", TRAIN, seed=(0,))
        write_task(work / "marks" / "test", "marks", TEST, seed=(1,))
        (work / "inbox").mkdir()
        for i, label in enumerate(("red", "green", "blue")):
            shutil.copy(work / "marks" / "test" / label / "000.png", work / "inbox" / f"{i}.png")
        (folder / "fit.svg").write_text(picture([(command, run(command, work)) for command in SHOWN]), "utf-8")
        run(SWEEP, work)
        (folder / "curves.svg").write_bytes((work / "runs" / "sweep" / "accuracy.svg").read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
