"""`coop encode`: image features in shards, for any number of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import FeatureDtype
from . import options
from .config import typed
from .console import Bars, line, print_json, progress, relative, say


def encode(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=f"{options.DATA_HELP} Or webdataset tars or parquet tables, by a glob, here or at a URL such as s3://.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the shards.", rich_help_panel=options.OUTPUT)
    ],
    features: Annotated[
        FeatureDtype,
        typer.Option("--features", rich_help_panel=options.OUTPUT,
                     help="What to keep the features in. float16 takes half the space; its last bits are rounded."),
    ] = "float32",
    model: options.ModelOption = options.DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    exif: options.ExifOption = False,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    on_error: options.OnErrorOption = "skip",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Encode images into shards of features, which `fit`, `eval`, `predict` and `sweep` take as DATA.

    Memory does not grow with the number of images. Run the same command to resume; in several shells, under torchrun or in a
    job array with one --output, it shares the shards out. The layout is clip-retrieval's, which autofaiss reads, too.
    """
    from ..clip.pixels import allow_pixels
    from ..data.streams import find_files
    from ..errors import CoopError
    from ..experiments.encoding import begin, of_dataset, of_files
    from ..experiments.encoding import encode as encode_shards
    from ..parallel import after_first
    from .setup import Source, open_backbone

    if max_pixels:
        allow_pixels(max_pixels)
    if files := find_files(data):
        say(f"data: {data}: {len(files)} files")
        source = of_files(files, data, image_column, label_column)
    else:
        source = of_dataset(typed(Source, context).load())
    backbone = open_backbone(model, revision, device, dtype, pickles).with_exif(exif)
    after_first(lambda: begin(output, source, backbone, features))
    with progress() as live:
        counts = encode_shards(output, source, backbone, features, on_error, Bars(live).counter("shards"))
    if counts is None:  # of many processes the first alone says what all have done
        return
    if not counts.images or counts.images == counts.unreadable:
        raise CoopError(f"none of {counts.images} images can be read")
    if counts.unreadable:
        say(f"note: {counts.unreadable} of {counts.images} images cannot be read; the tables in {output} say why")
    if json:
        print_json({"command": "encode", "folder": str(output), **vars(counts)})
    else:
        line(f"{counts.images} images in {counts.shards} shard{'s' * (counts.shards > 1)}: {relative(output)}")
