"""`coop ensemble`: classify with the average of many hand-written prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from . import handwritten, options
from .options import Classes, Device, Dtype, OnError


def ensemble(
    data: options.DataArgument = ".",
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates", metavar="NAME|FILE",
            help="A named set, or a file with one template a line.", show_default="imagenet, 80 templates",
        ),
    ] = None,
    template: options.TemplateOption = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    classes: options.ClassesOption = Classes.all,
    split: options.SplitOption = None,
    on_error: options.OnErrorOption = OnError.skip,
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = Device.auto,
    dtype: options.DtypeOption = Dtype.float32,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Zero-shot accuracy of a prompt ensemble: the mean text feature over many templates.

    --template, repeated, adds templates to those of --templates, or makes a set of its own without it.
    """
    from ..clip.templates import read_templates

    chosen = list(template or [])
    if templates or not chosen:
        chosen = [*read_templates(templates or "imagenet"), *chosen]
    from ..data.fewshot import half
    from .setup import load_source

    dataset = half(load_source(data, images, classnames, image_column, label_column, max_pixels), classes.value)
    handwritten.run(
        "ensemble", chosen, dataset, split, on_error, model, revision, device, dtype, pickles, no_cache, predictions, json
    )
