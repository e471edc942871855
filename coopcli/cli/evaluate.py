"""`coop eval`: classify with a learned prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import Bars, print_json, progress, say, show_evaluation, write_predictions
from .options import Classes, Device, Dtype


def evaluate(
    prompt: options.PromptArgument,
    data: options.DataArgument = ".",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="ID|FOLDER", rich_help_panel=options.MODEL,
            help="The same model in another place; by default the one that the prompt names.",
        ),
    ] = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    classes: options.ClassesOption = Classes.all,
    split: options.SplitOption = None,
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = Device.auto,
    dtype: options.DtypeOption = Dtype.float32,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Accuracy of a learned prompt on a data set.

    Model, preprocessing and class names come from the prompt file. The images are classified among the data's own
    classes: other classes than the prompt was fitted on, too, unless its context is class-specific.
    """
    from ..artifact import load_learned
    from ..evaluation import as_head, check_backbone, classes_of, evaluate_logits
    from ..features import image_features
    from ..fewshot import half
    from ..images import load_data
    from .setup import find_prompt, open_backbone, open_cache, pick_items

    learned = load_learned(find_prompt(prompt))
    dataset = half(load_data(data, images, classnames), classes.value)
    items = pick_items(dataset, split)
    # Names that the user gives for this data come before those the prompt knows the folders by.
    class_names = dataset.class_names if classnames else classes_of(learned, dataset)
    missing = len(set(learned.class_names) - set(class_names))
    if missing and not set(class_names) - set(learned.class_names):
        say(f"note: the data has {len(class_names)} of the prompt's {len(learned.class_names)} classes; choosing among these")
    backbone = open_backbone(model or learned.model, None if model else learned.revision, device, dtype, pickles)
    check_backbone(learned, backbone)
    cache = open_cache(no_cache)
    head = as_head(backbone, learned, class_names, cache)
    with progress() as live:
        seen = image_features(backbone, items, cache, Bars(live).counter("images"))
    result = evaluate_logits(head.logits(seen), class_names, items)
    if predictions:
        write_predictions(predictions, result)
    if json:
        print_json({"command": "eval", "data": dataset.name, "prompt": prompt, "model": backbone.name, **result.as_dict()})
    else:
        show_evaluation(f"{dataset.name} · {backbone.name} · {prompt}", result)
