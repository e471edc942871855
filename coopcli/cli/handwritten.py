"""What `zeroshot` and `ensemble` share: hand-written templates, one or many, evaluated on labelled images."""

from __future__ import annotations

from pathlib import Path

from .console import Bars, print_json, progress, show_evaluation, write_predictions
from .options import Classes, Device, Dtype, Split


def run(
    command: str,
    templates: list[str],
    data: str,
    model: str,
    revision: str | None,
    images: Path | None,
    classnames: Path | None,
    classes: Classes,
    split: Split | None,
    predictions: Path | None,
    device: Device,
    dtype: Dtype,
    pickles: bool,
    no_cache: bool,
    json: bool,
) -> None:
    """Evaluate hand-written templates and show the result."""
    from ..evaluation import evaluate_logits, hand_written_features
    from ..features import image_features
    from ..fewshot import half
    from ..images import load_data
    from .setup import open_backbone, open_cache, pick_items

    dataset = half(load_data(data, images, classnames), classes.value)
    items = pick_items(dataset, split)
    backbone = open_backbone(model, revision, device, dtype, pickles)
    cache = open_cache(no_cache)
    with progress() as live:
        bars = Bars(live)
        features = hand_written_features(backbone, templates, dataset.class_names, cache, bars.counter("templates"))
        seen = image_features(backbone, items, cache, bars.counter("images"))
    result = evaluate_logits(backbone.logit_scale * seen @ features.T, dataset.class_names, items)
    if predictions:
        write_predictions(predictions, result)
    if json:
        print_json(
            {"command": command, "data": dataset.name, "model": backbone.name, "templates": templates, **result.as_dict()}
        )
    else:
        wording = f'"{templates[0]}"' if len(templates) == 1 else f"{len(templates)} templates"
        show_evaluation(f"{dataset.name} · {backbone.name} · {wording}", result)
