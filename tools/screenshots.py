"""Make the pictures of README.md and docs/tutorial.md: what commands show in a terminal.

    python tools/screenshots.py [FOLDER]

Learns on the demo's data with the embedded model: some minutes on two cores. Writes an SVG for each entry of SCREENS to
FOLDER, docs/images by default. Needs the extra sweep.
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

from coopcli.demo import satellites

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH = 88  # columns
TEMPLATE = shlex.quote(satellites.TEMPLATE)
# By picture: the commands that it shows. `photos` are the demo's satellite photographs, `inbox` three of their test images.
SCREENS = {
    "fit": (
        "coop fit photos --model mini --shots 16 --template eurosat --output runs/satellites",
        "coop predict runs/satellites inbox --top 2",
    ),
    "tutorial-words": ("coop zeroshot photos --model mini", f"coop zeroshot photos --model mini --template {TEMPLATE}"),
    "tutorial-look": ("coop eval runs/satellites photos", "coop interpret runs/satellites --top 3"),
    "tutorial-luck": (
        "coop sweep photos --model mini --methods zeroshot,linear-probe,coop --shots 1,4 --recipe fast --output runs/sweep",
        "coop list runs",
    ),
}
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
        satellites.unpack_satellites(work / "photos")
        (work / "inbox").mkdir()
        for place in sorted((work / "photos" / "test").iterdir())[:3]:
            shutil.copy(min(place.iterdir()), work / "inbox")
        for screen, commands in SCREENS.items():
            shown = picture([(command, run(command, work)) for command in commands])
            (folder / f"{screen}.svg").write_text(shown, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
