"""The options that commands share: one name, one meaning everywhere. Nothing heavy is imported here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ..choices import DEFAULT_MODEL as DEFAULT_MODEL
from ..choices import Classes, Device, Dtype, OnError
from ..files import RUNS_FOLDER as RUNS_FOLDER
from .config import use_settings
from .console import QUIET, VERBOSE, set_level


def be_quiet(wanted: bool) -> bool:
    """Silence talk for the rest of the process."""
    if wanted:
        set_level(QUIET)
    return wanted


def be_verbose(wanted: bool) -> bool:
    """Say more for the rest of the process."""
    if wanted:
        set_level(VERBOSE)
    return wanted


Templates = TypeVar("Templates", str, list[str], None)


def use_template(given: Templates) -> Templates:
    """Callback of --template: put in the paper's template for the name of one of its data sets."""
    from ..clip.templates import read_template

    if isinstance(given, list):
        return [read_template(text) for text in given]
    return read_template(given) if isinstance(given, str) else given


def read_views(text: str) -> int:
    """Read --views, 0 for new ones in every epoch; raises BadParameter for what is neither."""
    return read_count(text, "online", "--views") or 0


def read_count(text: str, word: str, option: str) -> int | None:
    """Read a number from 1 up, or None for the word; raises BadParameter for anything else."""
    if text == word:
        return None
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise typer.BadParameter(f'"{text}" is neither a number from 1 to 999999 nor "{word}"', param_hint=option)
    return int(text)


DATA_HELP = (
    "A folder of class folders, a folder with train/, val/, test/ of those, a split_zhou_*.json (with --images), a table "
    "of paths and labels (CSV, TSV, JSON lines), a folder that `coop encode` wrote, or a data set of the `datasets` "
    "library: by hub id or local path."
)
MODEL, IMAGES, MACHINE, OUTPUT = "Model", "Data", "Machine", "Output"

DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
PromptArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="A run folder of `coop fit`, the file in it, or USER/NAME[@REVISION] on the Hugging Face hub."
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL",
        help="A CLIPModel or a model of another family: a Hugging Face id, a local folder, or `mini`, the small embedded one. "
        "With open_clip_torch installed, also `open_clip:RN50/openai`, or `open_clip:RN50/FILE` for weights of your own.",
    ),
]  # fmt: skip
SameModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="ID|FOLDER", rich_help_panel=MODEL,
        help="The same model in another place; by default the model that the prompt names.",
    ),
]  # fmt: skip
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.", rich_help_panel=MODEL)
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="ROOT", help="Folder that the paths of a split file or table start from.", rich_help_panel=IMAGES
    ),
]
ClassnamesOption = Annotated[
    Path | None,
    typer.Option(
        "--classnames", metavar="FILE", rich_help_panel=IMAGES,
        help="Names for the classes: JSON {folder: name}, lines of folder, tab, name, or names alone in class order.",
    ),
]  # fmt: skip
ClassListOption = Annotated[
    Path | None,
    typer.Option(
        "--classnames", metavar="FILE", rich_help_panel=IMAGES, show_default="those of the prompt",
        help="Classes to choose among: lines of names, or of folder, tab, name; or JSON. Not for class-specific contexts.",
    ),
]  # fmt: skip
OnErrorOption = Annotated[
    OnError,
    typer.Option("--on-error", help="What to do about an image that cannot be read.", rich_help_panel=IMAGES),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", metavar="N", min=1, rich_help_panel=IMAGES, show_default="178956970",
        help="Refuse images with more pixels: they may be made to fill the memory.",
    ),
]  # fmt: skip
ExifOption = Annotated[
    bool,
    typer.Option(
        "--exif/--no-exif", rich_help_panel=IMAGES,
        help="Turn images by their EXIF orientation, as viewers show them, or ignore it, as the reference does.",
    ),
]  # fmt: skip
SameExifOption = Annotated[
    bool | None,
    typer.Option(
        "--exif/--no-exif", rich_help_panel=IMAGES, show_default="as the prompt was learned",
        help="Turn images by their EXIF orientation, or ignore it.",
    ),
]  # fmt: skip
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="SPLIT", rich_help_panel=IMAGES, show_default="test, if the data has one",
        help="Images to use: train, val, test, all, or parts such as 'train[:50%]' and 'val+test'.",
    ),
]  # fmt: skip
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        "--image-column", metavar="NAME", rich_help_panel=IMAGES, show_default="by type and name",
        help="Column of a table or data set that holds the images or their paths.",
    ),
]  # fmt: skip
LabelColumnOption = Annotated[
    str | None,
    typer.Option(
        "--label-column", metavar="NAME", rich_help_panel=IMAGES, show_default="by type and name",
        help="Column that holds the classes.",
    ),
]  # fmt: skip
ClassesOption = Annotated[
    Classes,
    typer.Option(
        "--classes", rich_help_panel=IMAGES,
        help="All classes, or half of them: base, the first ceil(K/2), or new, the rest (base-to-new generalisation).",
    ),
]  # fmt: skip
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template", metavar="TEXT|NAME", callback=use_template,
        help='A sentence with {} for the class name, e.g. "a photo of a {}."; or a data set of the paper, whose it takes.',
    ),
]  # fmt: skip
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to run; auto takes a GPU if present.", rich_help_panel=MACHINE)
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What the frozen towers compute in.", rich_help_panel=MACHINE)]
PicklesOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle-weights", rich_help_panel=MODEL,
        help="Also load models without safetensors weights. A pickle can run code: use it only for models you trust.",
    ),
]  # fmt: skip
NoCacheOption = Annotated[
    bool, typer.Option("--no-cache", help="Neither read nor write the feature cache.", rich_help_panel=MACHINE)
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.toml", is_eager=True, callback=use_settings, rich_help_panel=OUTPUT,
        help="Take options from a settings file, such as a run folder's settings.toml; those typed here come first.",
    ),
]  # fmt: skip
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=be_quiet, rich_help_panel=OUTPUT, help="Neither notes nor progress on stderr."),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=be_verbose, rich_help_panel=OUTPUT, help="Also say where time and memory go."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)]
PlotOption = Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the figures.", rich_help_panel=OUTPUT)]
PredictionsOption = Annotated[
    Path | None,
    typer.Option("--predictions", metavar="FILE.csv", help="Write every image's prediction.", rich_help_panel=OUTPUT),
]
