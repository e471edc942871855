"""`coop eval`: classify with a learned prompt."""

from __future__ import annotations

from typing import Any

import typer

from . import options
from .config import typed
from .console import Bars, print_json, progress, say, show_evaluation, write_predictions


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
    classes: options.ClassesOption = "all",
    split: options.SplitOption = None,
    on_error: options.OnErrorOption = "skip",
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Accuracy of a learned prompt on a data set.

    Model, preprocessing and class names come from the prompt file. The images are classified among the data's own
    classes: other classes than the prompt was fitted on, too, unless its context is class-specific.
    """
    from ..clip.image_features import readable_features
    from ..data.checks import count_traps, prompt_traps, warn
    from ..data.fewshot import half
    from ..experiments.run_folder import provenance
    from ..learned.classifier import as_head, check_backbone, classes_of
    from ..learned.prompt import load_learned
    from ..learned.scores import evaluate_logits
    from .setup import Source, find_prompt, open_backbone, open_cache, pick_items

    learned = load_learned(find_prompt(prompt))
    dataset = half(typed(Source, context).load(), classes)
    items = pick_items(dataset, split)
    # Names that the user gives for this data come before those the prompt knows the folders by.
    class_names = dataset.class_names if classnames else classes_of(learned, dataset)
    warn([*prompt_traps(learned.class_names, class_names), *count_traps(class_names, items)])
    missing = len(set(learned.class_names) - set(class_names))
    if missing and not set(class_names) - set(learned.class_names):
        say(f"note: the data has {len(class_names)} of the prompt's {len(learned.class_names)} classes; choosing among these")
    backbone = open_backbone(model or learned.model, None if model else learned.revision, device, dtype, pickles)
    check_backbone(learned, backbone)
    cache = open_cache(no_cache)
    head = as_head(backbone, learned, class_names, cache)
    with progress() as live:
        readable, seen = readable_features(backbone, items, cache, on_error, Bars(live).counter("images"))
    result = evaluate_logits(head.logits(seen), class_names, readable)
    if predictions:
        write_predictions(predictions, result)
    if json:
        about: dict[str, Any] = {"command": "eval", "data": dataset.name, "prompt": prompt, "model": backbone.name}
        about |= {"fingerprint": learned.fingerprint, **{key: learned.training.get(key) for key in ("seed", "few_shot_sha256")}}
        about["skipped"] = len(items) - len(readable)
        print_json({**about, **result.as_dict(), **provenance(backbone.device)})
    else:
        show_evaluation(f"{dataset.name} · {backbone.name} · {prompt}", result)
