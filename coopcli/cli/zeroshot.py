"""`coop zeroshot` and `coop ensemble`: classify with hand-written prompts, one or the average of many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..choices import Classes, Device, Dtype, OnError
from . import options
from .config import typed
from .console import Bars, print_json, progress, show_evaluation, write_predictions


def zeroshot(
    context: typer.Context,
    data: options.DataArgument = ".",
    model: options.ModelOption = options.DEFAULT_MODEL,
    template: options.TemplateOption = None,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    exif: options.ExifOption = False,
    classes: options.ClassesOption = "all",
    split: options.SplitOption = None,
    on_error: options.OnErrorOption = "skip",
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:
    """Measure the zero-shot accuracy of a hand-written prompt.

    No image is trained on: each class name is put into the template, and each image goes to the class with the most
    similar prompt.
    """
    from ..clip.templates import DEFAULT_TEMPLATE
    from ..errors import UsageError

    templates = template or [DEFAULT_TEMPLATE]
    if len(templates) > 1:
        raise UsageError("coop zeroshot takes one --template; coop ensemble averages several")
    _run("zeroshot", templates, context)


def ensemble(
    context: typer.Context,
    data: options.DataArgument = ".",
    model: options.ModelOption = options.DEFAULT_MODEL,
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates", metavar="NAME|FILE",
            help="A named set, or a file with one template a line.", show_default="imagenet, 80 templates",
        ),
    ] = None,
    template: options.TemplateOption = None,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    exif: options.ExifOption = False,
    classes: options.ClassesOption = "all",
    split: options.SplitOption = None,
    on_error: options.OnErrorOption = "skip",
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Measure the zero-shot accuracy of a prompt ensemble: class features averaged over many templates.

    Repeat --template to give templates of your own; with --templates, they are added to that set.
    """
    from ..clip.templates import read_templates

    chosen = list(template or [])
    if templates or not chosen:
        chosen = [*read_templates(templates or "imagenet"), *chosen]
    _run("ensemble", chosen, context)


@dataclass(frozen=True)
class _Settings:
    """The options that both commands have, besides those that say which images."""

    model: str
    revision: str | None
    classes: Classes
    split: str | None
    on_error: OnError
    predictions: Path | None
    device: Device
    dtype: Dtype
    pickles: bool
    no_cache: bool
    exif: bool
    json: bool


def _run(command: str, templates: list[str], context: typer.Context) -> None:
    """Classify the images with hand-written templates and show the result."""
    from ..clip.class_features import hand_written_features
    from ..clip.image_features import readable_features
    from ..data.checks import count_traps, warn
    from ..data.fewshot import half
    from ..experiments.run_folder import provenance
    from ..learned.scores import by_class_features, evaluate_features
    from ..parallel import first_goes_on
    from .setup import Source, open_backbone, open_cache, pick_items

    settings = typed(_Settings, context)
    dataset = half(typed(Source, context).load(), settings.classes)
    items = pick_items(dataset, settings.split)
    warn(count_traps(dataset.class_names, items))
    cache = open_cache(settings.no_cache)
    backbone = open_backbone(settings.model, settings.revision, settings.device, settings.dtype, settings.pickles, cache)
    backbone = backbone.with_exif(settings.exif)
    with progress() as live:
        bars = Bars(live)
        features = hand_written_features(backbone, templates, dataset.class_names, cache, bars.counter("templates"))
        readable, seen = readable_features(backbone, items, cache, settings.on_error, bars.counter("images"))
    result = evaluate_features(by_class_features(backbone.logit_scale, features), seen, dataset.class_names, readable)
    if not first_goes_on():  # of many processes one writes
        return
    if settings.predictions:
        write_predictions(settings.predictions, result)
    if settings.json:
        about: dict[str, Any] = {"command": command, "data": dataset.name, "model": backbone.name}
        about["fingerprint"] = backbone.fingerprint
        about |= {"templates": templates, "skipped": len(items) - len(readable)}
        print_json({**about, **result.as_dict(), **provenance(backbone.device)})
    else:
        wording = f'"{templates[0]}"' if len(templates) == 1 else f"{len(templates)} templates"
        show_evaluation(f"{dataset.name} · {backbone.name} · {wording}", result)
