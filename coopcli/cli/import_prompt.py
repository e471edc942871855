"""`coop import`: a checkpoint of the reference as a prompt file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..choices import Position
from . import options
from .console import line, print_json, relative, say


def import_prompt(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The reference's file, e.g. .../prompt_learner/model.pth.tar-50.")
    ],
    classnames: Annotated[
        Path,
        typer.Option(
            "--classnames", metavar="FILE", rich_help_panel=options.IMAGES, show_default=False,
            help="The class names it was trained with, in order: a split_zhou_*.json, a JSON list, JSON {folder: name}, "
                 "or a class a line: name, or folder, tab and name.",
        ),
    ],
    model: options.ModelOption = options.DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    pickles: options.PicklesOption = False,
    position: Annotated[
        Position, typer.Option("--position", help="Where the class name stood: the checkpoint does not say.")
    ] = "end",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", show_default="CHECKPOINT.safetensors, beside it",
                     help="Prompt file to write."),
    ] = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Turn a checkpoint of the reference implementation into a prompt file.

    No code in the checkpoint is run. The token embeddings in it show whether it belongs to the model and the class names.
    """
    from ..data.classnames import read_class_list
    from ..learned.reference import import_prompt as import_checkpoint
    from ..learned.reference import read_checkpoint
    from .setup import open_backbone

    contents, pairs = read_checkpoint(checkpoint), read_class_list(classnames)
    names, folders = tuple(name for _, name in pairs), tuple(folder or name for folder, name in pairs)
    backbone = open_backbone(model, revision, "cpu", "float32", pickles)
    prompt = import_checkpoint(contents, backbone, names, folders, position)
    path = output or checkpoint.with_name(f"{checkpoint.name}.safetensors")
    prompt.save(path)
    if json:
        about = {
            "checkpoint": str(checkpoint),
            "prompt": str(relative(path)),
            "model": backbone.name,
            **asdict(prompt.settings),
        }
        print_json({"command": "import", **about, "epoch": contents.epoch, "class_names": names})
    else:
        shape = f"{prompt.settings.n_ctx} vectors of {backbone.text_encoder.width}"
        owner = "for each class" if prompt.settings.csc else "for all classes"
        line(f"{len(names)} classes, {shape} {owner}, class name at position {position}")
        say(f"prompt: {relative(path)}")
