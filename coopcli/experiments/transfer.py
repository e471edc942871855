"""Domain generalisation: learned prompts on other data sets than their own, beside hand-written ones (CoOp, Section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.image_features import image_features
from ..data.fewshot import test_items
from ..data.load import DataSet, ImageItem
from ..errors import CoopError
from ..learned.applied import as_head, as_seen_by, check_backbone, classes_of
from ..learned.head import Head
from ..learned.prompt import LearnedPrompt
from ..learned.scores import Classify, by_class_features, evaluate_features
from ..names import distinct, short_name
from . import plots
from .contents import trained_on
from .describe import grouped, seed_of, sources_of
from .grid import OnStep
from .summary import Spread, spread_of


@dataclass(frozen=True)
class Target:
    """A data set to test on, with the hand-written template that suits it.

    `renamed` class names were given for this data set and win over those that a prompt knows its folders by.
    """

    dataset: DataSet
    template: str
    renamed: bool = False


@dataclass(frozen=True)
class Transfer:
    """One classifier on one data set: accuracies as shares in [0, 1], None where it does not fit, and `note` says why.

    `source` names what was learned, the same for all seeds; hand-written prompts have no seed. Images that were trained on,
    `trained_on` in number, are not among the `images` that count.
    """

    source: str
    seed: int | None
    dataset: str
    top1: float | None = None
    macro: float | None = None
    images: int = 0
    note: str = ""
    file: str | None = None
    fingerprint: str | None = None
    few_shot_sha256: str | None = None
    trained_on: int = 0


def transfer(
    learned: Sequence[tuple[Path, LearnedPrompt | Head]],
    targets: Sequence[Target],
    backbone_of: Callable[[LearnedPrompt | Head], Backbone],
    templates: Sequence[str],
    cache: FeatureCache,
    on_images: OnStep = lambda step, done, total: None,
) -> list[Transfer]:
    """Test every classifier on every data set; before them, for each backbone, the target's own template and the ensemble.

    Raises CoopError for a prompt that was learned on another backbone than `backbone_of` gives.
    """
    loaded: dict[str, Backbone] = {}
    backbones: dict[tuple[str, bool], Backbone] = {}
    for _, classifier in learned:
        if classifier.fingerprint not in loaded:
            loaded[classifier.fingerprint] = backbone_of(classifier)
        check_backbone(classifier, loaded[classifier.fingerprint])
        backbones[_images_of(classifier)] = loaded[classifier.fingerprint].with_exif(classifier.exif)
    sources = sources_of([classifier for _, classifier in learned], [str(path) for path, _ in learned])
    models = [short_name(backbone.name) + ", turned by EXIF" * backbone.exif for backbone in backbones.values()]
    titles = distinct([target.dataset.name for target in targets])
    rows: list[Transfer] = []
    for (key, backbone), model, own_name in zip(backbones.items(), models, distinct(models), strict=True):
        fingerprint, _ = key
        of_model, by_hand = (f", {model}", f", {own_name}") if len(models) > 1 else ("", "")
        own = [
            (source + of_model, path, classifier)
            for source, (path, classifier) in zip(sources, learned, strict=True)
            if _images_of(classifier) == key
        ]
        for target, title in zip(targets, titles, strict=True):
            items = test_items(target.dataset)
            images = image_features(backbone, items, cache, partial(on_images, f"images of {title}"))
            for source, wording in (("zeroshot", [target.template]), ("ensemble", list(templates))):
                row = Transfer(source + by_hand, None, title, fingerprint=fingerprint)
                names = target.dataset.class_names
                features = hand_written_features(backbone, wording, names, cache)
                rows.append(_tested(row, names, by_class_features(backbone.logit_scale, features), images, items))
            for source, path, classifier in own:
                sha256 = classifier.training.get("few_shot_sha256")
                row = Transfer(
                    source, seed_of(classifier), title, file=str(path), fingerprint=fingerprint, few_shot_sha256=sha256
                )
                names = target.dataset.class_names if target.renamed else classes_of(classifier, target.dataset)
                try:
                    classify = as_head(backbone, classifier, names).logits
                    seen = trained_on(classifier, path, target.dataset).among(items)
                    own_images = image_features(as_seen_by(classifier, backbone), items, cache)
                    row = _tested(row, names, classify, own_images, items, seen)
                except CoopError as error:
                    row = replace(row, note=str(error))
                rows.append(row)
    return rows


def _images_of(classifier: LearnedPrompt | Head) -> tuple[str, bool]:
    """What the features of its images depend on."""
    return classifier.fingerprint, classifier.exif


def _tested(
    row: Transfer,
    names: Sequence[str],
    classify: Classify,
    images: Tensor,
    items: Sequence[ImageItem],
    seen: Collection[int] = (),
) -> Transfer:
    """The row with the accuracies on images [n, p], without those at the places `seen`, which were trained on."""
    rest = [place for place in range(len(items)) if place not in seen]
    if not rest:
        return replace(row, trained_on=len(seen), note="every image was trained on")
    metrics = evaluate_features(classify, images[rest], names, [items[place] for place in rest]).metrics
    note = f"{len(seen)} of {len(items)} images were trained on and do not count" if seen else ""
    return replace(row, top1=metrics.top1, macro=metrics.macro, images=metrics.n, trained_on=len(seen), note=note)


def matrix(rows: Sequence[Transfer]) -> dict[str, dict[str, Spread | None]]:
    """Top-1 over the seeds, by source and data set."""
    table: dict[str, dict[str, Spread | None]] = {}
    for (source, dataset), of_seeds in grouped(rows, lambda row: (row.source, row.dataset)).items():
        table.setdefault(source, {})[dataset] = spread_of([row.top1 for row in of_seeds])
    return table


def draw(path: Path, table: dict[str, dict[str, Spread | None]]) -> None:
    """Draw the matrix as groups of bars; writes `path` with the endings .png and .svg."""
    columns = list(next(iter(table.values())))
    bars = {
        source: [(spread.mean, spread.std) if (spread := row.get(name)) else None for name in columns]
        for source, row in table.items()
    }
    plots.grouped_bars(path, "Transfer", columns, bars)
