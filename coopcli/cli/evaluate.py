"""`coop eval`: classify with a learned prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import typer

from . import options
from .config import typed
from .console import Bars, percent, print_json, progress, say, show_evaluation, write_predictions


def evaluate(
    context: typer.Context,
    prompt: options.PromptArgument,
    data: options.DataArgument = ".",
    model: options.SameModelOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    exif: options.SameExifOption = None,
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
    """Measure the accuracy of a learned prompt on a data set.

    Model, preprocessing and class names come from the prompt file. Images are classified among the data's own classes,
    which may differ from those the prompt was fitted on, unless its context is class-specific.
    """
    from ..data.fewshot import half
    from ..experiments.contents import overlap, trained_on
    from ..experiments.run_folder import provenance
    from ..learned.applied import evaluate_learned
    from ..learned.prompt import load_learned
    from ..parallel import first_goes_on
    from .setup import Source, find_prompt, open_backbone, open_cache, pick_items

    path = find_prompt(prompt, [data])
    if getattr(context.get_parameter_source("data"), "name", "") == "DEFAULT":
        say("note: no DATA given; taking the images of the current folder")
    learned = load_learned(path)
    if exif is not None:
        learned = replace(learned, exif=exif)
    whole = typed(Source, context).load()
    dataset = half(whole, classes)
    items = pick_items(dataset, split)
    cache = open_cache(no_cache)
    backbone = open_backbone(model or learned.model, None if model else learned.revision, device, dtype, pickles, cache)
    with progress() as live:
        count = Bars(live).counter("images")
        result = evaluate_learned(learned, backbone, dataset, items, classnames is not None, cache, on_error, count)
    if not first_goes_on():  # of many processes one writes
        return
    seen = overlap(result, trained_on(learned, path, whole))
    if predictions:
        write_predictions(predictions, result)
    if json:
        about: dict[str, Any] = {"command": "eval", "data": dataset.name, "prompt": prompt, "model": backbone.name}
        about |= {"fingerprint": learned.fingerprint, **{key: learned.training.get(key) for key in ("seed", "few_shot_sha256")}}
        about["skipped"] = len(items) - len(result.items)
        about["trained_on"] = seen.as_dict()
        print_json({**about, **result.as_dict(), **provenance(backbone.device)})
    else:
        show_evaluation(f"{dataset.name} · {backbone.name} · {prompt}", result)
    if seen.images:
        without = "no other image is left"
        if seen.without:
            rest = seen.without
            without = f"without them: top-1 {percent(rest.top1)} %, macro average {percent(rest.macro)} %, {rest.n} images"
        say(f"note: {seen.images} of these {len(result.items)} images were trained on; {without}")
