"""`coop data`: check a download of one of the paper's data sets, and make what it lacks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..data.paper_sets import PAPER_SETS
from . import options
from .console import Bars, line, print_json, progress, say


def data(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"One of the paper's: {', '.join(one.name for one in PAPER_SETS)}.")
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The data set's folder, or the one that holds a folder for each data set.")
    ] = Path(),
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:
    """Check a download of one of the paper's eleven data sets.

    Every image of the official split must be there. FGVCAircraft's split file and ImageNet's class names are made; for
    anything else that is missing, this says where to get it. Nothing is downloaded. Ends with the command that uses the data.
    """
    from ..data.paper_check import check_paper_set
    from ..data.paper_sets import paper_set
    from ..errors import CoopError

    known = paper_set(name)
    with progress() as live:
        found = check_paper_set(known, folder, Bars(live).counter("images"))
    images = "." if found.images is not None and not str(found.images) else found.images
    words = ["coop", "zeroshot", str(found.data), *(["--images", str(images)] if images else [])]
    words += [*(["--classnames", str(found.classnames)] if found.classnames else []), "--template", known.name]
    if json:
        print_json({
            "command": "data", "name": known.name, "data": found.data and str(found.data), "images": images and str(images),
            "classnames": found.classnames and str(found.classnames), "counts": found.counts, "made": found.made,
            "problems": found.problems, "complete": not found.problems,
        })  # fmt: skip
    for made in found.made:
        say(f"made: {made}")
    if found.problems:
        raise CoopError(f"{known.name} is not complete: {'; '.join(found.problems)}")
    if not json:
        counts = ", ".join(f"{count:,} {part}" for part, count in found.counts.items())
        line(f"{known.name} is complete: {known.n_classes} classes, images: {counts}")
    say(f"next: {shlex.join(words)}")
