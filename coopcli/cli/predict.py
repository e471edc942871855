"""`coop predict`: which class each image shows, by a learned prompt or head."""

from __future__ import annotations

import csv as csv_format
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from ..choices import Probabilities
from . import options
from .console import field, line, percent, print_json, printable, progress, say

if TYPE_CHECKING:
    from ..learned.predict import Prediction

NONE = "none of these"
WIDEST = 40  # letters of a class name that keep the table in columns


def predict(
    prompt: options.PromptArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|GLOB|-...",
            help="Image files, folders of them at any depth, quoted globs, or - for paths on stdin, one per line.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Show the K most probable classes of each image.")] = 1,
    threshold: Annotated[
        float,
        typer.Option("--threshold", metavar="P", min=0, max=1, help='Say "none of these" if no class is this probable.'),
    ] = 0.0,
    probabilities: Annotated[
        Probabilities,
        typer.Option("--probabilities", help="softmax: one class among all. sigmoid: each class on its own (SigLIP models)."),
    ] = "softmax",
    classnames: options.ClassListOption = None,
    on_error: options.OnErrorOption = "skip",
    max_pixels: options.MaxPixelsOption = None,
    exif: options.SameExifOption = None,
    model: options.SameModelOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    move_to: Annotated[
        Path | None,
        typer.Option("--move-to", metavar="FOLDER", rich_help_panel=options.OUTPUT,
                     help="Sort: move each image into FOLDER/CLASS. Nothing is overwritten; a taken name gets a number."),
    ] = None,
    link_to: Annotated[
        Path | None,
        typer.Option("--link-to", metavar="FOLDER", rich_help_panel=options.OUTPUT,
                     help="Sort: make a symbolic link to each image in FOLDER/CLASS."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.", rich_help_panel=options.OUTPUT)] = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON lines on stdout: one object for each image.", rich_help_panel=options.OUTPUT),
    ] = False,
) -> None:  # fmt: skip
    """Classify images with a learned prompt.

    Rows come in the order of the images, as they are done; memory does not grow with their number. With --json each is
    `{"image": ..., "class": ..., "probability": ..., "top": [{"class": ..., "probability": ...}, ...], "probabilities":
    "softmax"}`, its class null below the threshold. Images that cannot be read are named on stderr and left out.
    """
    from ..clip.pixels import allow_pixels
    from ..data.classnames import read_choices
    from ..data.formats import describe_endings, ending
    from ..errors import CoopError, UsageError
    from ..learned.classifier import Classifier
    from ..learned.predict import STDIN, find_images
    from ..learned.predict import predict as predictions
    from ..learned.prompt import load_learned
    from ..learned.sorting import class_folders, sort_image
    from ..parallel import world
    from .finding import is_run
    from .setup import find_prompt, open_backbone, open_cache

    if csv and json:
        raise UsageError("--csv and --json both say how to print; choose one")
    if max_pixels:
        allow_pixels(max_pixels)
    if move_to and link_to:
        raise UsageError("--move-to and --link-to both say where images go; choose one")
    learned = load_learned(find_prompt(prompt, images))
    if exif is not None:
        learned = replace(learned, exif=exif)
    if runs := [word for word in images if is_run(Path(word))]:
        raise UsageError(f'"{runs[0]}" is a run folder, not images')
    first = world().rank == 0  # of many processes the first alone writes
    if world().size > 1 and STDIN in images:
        raise UsageError("several processes cannot read one stdin; give folders, files or globs in place of -")
    passed_over: Counter[str] = Counter()
    items = find_images(images, _paths_on_stdin(), lambda name: passed_over.update([ending(name)]))
    sort_into = move_to or link_to
    if sort_into:
        items = iter(list(items))  # before any of them moves
    names = read_choices(classnames) if classnames else learned.class_names
    cache = open_cache(no_cache)
    backbone = open_backbone(model or learned.model, None if model else learned.revision, device, dtype, pickles, cache)
    classifier = Classifier(learned, backbone, names, cache, probabilities)
    top = min(top, len(names))
    folders = class_folders(names)
    counts: Counter[str] = Counter()
    show: Callable[[Prediction], None] | None = None
    read = skipped = 0
    with progress(quiet=sys.stdout.isatty()) as live:  # there the rows are the progress
        bar = live.add_task("images", total=None, note="")
        for prediction in predictions(classifier, items, top, threshold):
            if isinstance(prediction, CoopError):
                if on_error == "fail":
                    raise prediction
                skipped += 1
                say(f"note: {prediction}")
            else:
                read += 1
                if not first:
                    continue
                if sort_into and prediction.class_name is not None:
                    sort_image(Path(prediction.image), sort_into / folders[prediction.class_name], link=link_to is not None)
                    counts[prediction.class_name] += 1
                show = show or (
                    _csv_printer(top, probabilities)
                    if csv
                    else _json_printer(probabilities)
                    if json
                    else _table_printer(names, top)
                )
                show(prediction)
                sys.stdout.flush()  # rows show as they come, in a pipe too
            live.advance(bar)
    if not read:
        raise CoopError(f"none of the {skipped} images can be read")
    if not first:
        return
    if sort_into:
        stay = f"; {read - counts.total()} stay, below the threshold" if read > counts.total() else ""
        done = "moved" if move_to else "linked"
        say(f"{done} {counts.total()} images into {len(counts)} class folders in {sort_into}{stay}")
    if passed_over:
        say(f"note: left out {describe_endings(passed_over)}")
    if skipped:
        say(f"{skipped} of {read + skipped} images cannot be read and are left out")


def _paths_on_stdin() -> Iterator[str]:
    if sys.stdin:  # None where it is closed
        yield from map(os.fsdecode, sys.stdin.buffer)


def _json_printer(probabilities: Probabilities) -> Callable[[Prediction], None]:
    """Print one line for each image."""

    def show(prediction: Prediction) -> None:
        top = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.top]
        row = {"image": prediction.image, "class": prediction.class_name, "probability": top[0]["probability"], "top": top}
        print_json(row | {"probabilities": probabilities}, indent=None)

    return show


def _csv_printer(top: int, probabilities: Probabilities) -> Callable[[Prediction], None]:
    """Print a header, and for each image a row: image, class, probability, with --top all its ranks, kind of probability."""
    rows = csv_format.writer(sys.stdout, lineterminator="\n")
    ranks = range(1, top + 1) if top > 1 else ()
    ranked = [f"{what}_{rank}" for rank in ranks for what in ("class", "probability")]
    rows.writerow(["image", "class", "probability", *ranked, "probabilities"])

    def show(prediction: Prediction) -> None:
        pairs = [(field(name), f"{probability:.6f}") for name, probability in prediction.top]
        best = NONE if prediction.class_name is None else pairs[0][0]
        cells = [cell for pair in pairs for cell in pair if ranks]
        rows.writerow([field(prediction.image), best, pairs[0][1], *cells, probabilities])

    return show


def _table_printer(names: Sequence[str], top: int) -> Callable[[Prediction], None]:
    """Print a heading, and for each image a line for each of its top classes, the first with the image."""
    width = min(WIDEST, max(cell_len(printable(name)) for name in (*names, NONE)))

    def row(share: str, name: str, image: str = "") -> None:
        name = printable(name)
        line(f"{share:>5}  {name}{' ' * (width - cell_len(name))}  {image}".rstrip(), indent=" " * 7)

    def show(prediction: Prediction) -> None:
        ranks = [(percent(probability), name) for name, probability in prediction.top]
        if prediction.class_name is None:  # the best guess stays in sight
            ranks = [("", NONE), *ranks] if top > 1 else [(ranks[0][0], f"{NONE} ({ranks[0][1]}?)")]
        for number, (share, name) in enumerate(ranks):
            row(share, name, "" if number else prediction.image)

    row("%", "class", "image")
    return show
