"""Domain generalisation: learned prompts on other data sets than their own, beside hand-written ones (CoOp, Section 4.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.image_features import image_features
from ..data.fewshot import in_words, test_items
from ..data.load import DataSet
from ..errors import CoopError
from ..learned.classifier import check_backbone, classes_of, learned_logits
from ..learned.head import Head
from ..learned.prompt import LearnedPrompt
from ..learned.scores import evaluate_logits
from ..names import distinct, short_name
from . import plots
from .summary import Spread, spread_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Target:
    """A data set to be tested on, with the hand-written template that suits it.

    `renamed`: its class names were given for it, and come before those that a prompt knows its folders by.
    """

    dataset: DataSet
    template: str
    renamed: bool = False


@dataclass(frozen=True)
class Transfer:
    """One classifier on one data set: accuracies as shares in [0, 1], None where it does not fit, and `note` says why.

    `source` names what was learned, whatever the seed; hand-written prompts have no seed.
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


def transfer(
    learned: Sequence[tuple[Path, LearnedPrompt | Head]],
    targets: Sequence[Target],
    backbone_of: Callable[[LearnedPrompt | Head], Backbone],
    templates: Sequence[str],
    cache: FeatureCache,
    on_images: Progress = lambda step, done, total: None,
) -> list[Transfer]:
    """Every classifier on every data set; before them, for each backbone, the target's own template and the ensemble.

    Raises CoopError for a prompt that was learned on another backbone than `backbone_of` gives.
    """
    rows: list[Transfer] = []
    backbones: dict[str, Backbone] = {}
    for _, one in learned:
        if one.fingerprint not in backbones:
            backbones[one.fingerprint] = backbone_of(one)
        check_backbone(one, backbones[one.fingerprint])
    sources = sources_of(learned)
    models = [short_name(backbone.name) for backbone in backbones.values()]
    titles = distinct([target.dataset.name for target in targets])
    for (fingerprint, backbone), model, own_name in zip(backbones.items(), models, distinct(models), strict=True):
        of_model, by_hand = (f", {name}" if len(models) > 1 else "" for name in (model, own_name))
        for target, title in zip(targets, titles, strict=True):
            dataset = target.dataset
            items = test_items(dataset)
            images = image_features(backbone, items, cache, lambda *n, of=title: on_images(f"images of {of}", *n))

            def tested(names: Sequence[str], logits: Tensor, of: Any = items) -> dict[str, Any]:
                metrics = evaluate_logits(logits, names, of).metrics
                return {"top1": metrics.top1, "macro": metrics.macro, "images": metrics.n}

            for source, wording in (("zeroshot", [target.template]), ("ensemble", list(templates))):
                features = hand_written_features(backbone, wording, dataset.class_names, cache)
                found = tested(dataset.class_names, backbone.logit_scale * images @ features.T)
                rows.append(Transfer(source + by_hand, None, title, fingerprint=fingerprint, **found))
            for (path, one), source in zip(learned, sources, strict=True):
                if one.fingerprint != fingerprint:
                    continue
                names = dataset.class_names if target.renamed else classes_of(one, dataset)
                sha256 = one.training.get("few_shot_sha256")
                about: dict[str, Any] = {"file": str(path), "fingerprint": fingerprint, "few_shot_sha256": sha256}
                try:
                    about |= tested(names, learned_logits(backbone, one, images, names))
                except CoopError as error:
                    about["note"] = str(error)
                rows.append(Transfer(source + of_model, _seed_of(one), title, **about))
    return rows


def sources_of(learned: Sequence[tuple[Path, LearnedPrompt | Head]]) -> list[str]:
    """Of each what it is, in words that are the same for all seeds, and for nothing else.

    Where recipes differ they are told, too; of two that are the same even so, seed and all, each goes by its file.
    """
    sources = [source_of(one) for _, one in learned]
    recipes = [recipe if isinstance(recipe := one.training.get("recipe"), dict) else {} for _, one in learned]
    for source in set(sources):
        places = [place for place, other in enumerate(sources) if other == source]
        names = sorted({str(name) for place in places for name in recipes[place]})
        differ = [name for name in names if len({str(recipes[place].get(name)) for place in places}) > 1]
        for place in places:
            sources[place] += "".join(f", {name} {recipes[place].get(name)}" for name in differ)
    again = Counter((source, _seed_of(one), one.model) for source, (_, one) in zip(sources, learned, strict=True))
    of_files = {source for (source, *_), count in again.items() if count > 1}
    return [f"{source}, {path}" if source in of_files else source for source, (path, _) in zip(sources, learned, strict=True)]


def _seed_of(learned: LearnedPrompt | Head) -> int | None:
    """None also where a file made by hand tells something else."""
    return seed if isinstance(seed := learned.training.get("seed"), int) else None


def source_of(learned: LearnedPrompt | Head) -> str:
    """What was learned, in words that are the same for all seeds."""
    told = learned.training
    words = [str(told.get("data", "?"))]
    if isinstance(learned, Head):
        words.append(learned.method)
    else:
        settings = learned.settings
        words.append(f"M = {settings.n_ctx} {settings.position}{' csc' if settings.csc else ''}")
        if told.get("init"):
            words.append(f'"{told["init"]}"')
    if "shots" in told:
        words.append(in_words(told["shots"]))
    if told.get("classes", "all") != "all":
        words.append(f"{told['classes']} classes")
    return ", ".join(words)


def matrix(rows: Sequence[Transfer]) -> dict[str, dict[str, Spread | None]]:
    """Top-1 over the seeds, by source and data set."""
    table: dict[str, dict[str, Spread | None]] = {}
    for row in rows:
        of_seeds = [other.top1 for other in rows if (other.source, other.dataset) == (row.source, row.dataset)]
        table.setdefault(row.source, {})[row.dataset] = spread_of(of_seeds)
    return table


def draw(path: Path, table: dict[str, dict[str, Spread | None]]) -> None:
    """The matrix as groups of bars; writes `path` with the endings .png and .svg."""
    columns = list(next(iter(table.values())))
    plots.grouped_bars(
        path, "Transfer", columns, {source: [row.get(name) for name in columns] for source, row in table.items()}
    )
