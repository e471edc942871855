"""What `zeroshot` and `ensemble` share: hand-written templates, one or many, evaluated on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Bars, print_json, progress, show_evaluation, write_predictions
from .options import Device, Dtype, OnError

if TYPE_CHECKING:
    from ..data.load import DataSet


def run(
    command: str,
    templates: list[str],
    dataset: DataSet,
    split: str | None,
    on_error: OnError,
    model: str,
    revision: str | None,
    device: Device,
    dtype: Dtype,
    pickles: bool,
    no_cache: bool,
    predictions: Path | None,
    json: bool,
) -> None:
    """Evaluate hand-written templates and show the result."""
    from ..clip.class_features import hand_written_features
    from ..clip.image_features import readable_features
    from ..data.checks import count_traps, warn
    from ..experiments.run_folder import provenance
    from ..learned.scores import evaluate_logits
    from .setup import open_backbone, open_cache, pick_items

    items = pick_items(dataset, split)
    warn(count_traps(dataset.class_names, items))
    backbone = open_backbone(model, revision, device, dtype, pickles)
    cache = open_cache(no_cache)
    with progress() as live:
        bars = Bars(live)
        features = hand_written_features(backbone, templates, dataset.class_names, cache, bars.counter("templates"))
        readable, seen = readable_features(backbone, items, cache, on_error.value, bars.counter("images"))
    result = evaluate_logits(backbone.logit_scale * seen @ features.T, dataset.class_names, readable)
    if predictions:
        write_predictions(predictions, result)
    if json:
        about: dict[str, Any] = {"command": command, "data": dataset.name, "model": backbone.name}
        about["fingerprint"] = backbone.fingerprint
        about |= {"templates": templates, "skipped": len(items) - len(readable)}
        print_json({**about, **result.as_dict(), **provenance(backbone.device)})
    else:
        wording = f'"{templates[0]}"' if len(templates) == 1 else f"{len(templates)} templates"
        show_evaluation(f"{dataset.name} · {backbone.name} · {wording}", result)
