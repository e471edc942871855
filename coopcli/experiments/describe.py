"""What was learned, in words, and which learned prompts and heads differ in their seed only."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from ..data.fewshot import in_words
from ..learned.head import Head
from ..learned.prompt import LearnedPrompt
from ..names import short_name
from .grid import Cell, Variant

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

ASKED = ("data", "classes", "shots", "init", "recipe", "dtype")  # of a file's training: the same for all seeds


def grouped(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The values by their key, in the order in which the keys first come."""
    groups: dict[K, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def group_key(learned: LearnedPrompt | Head) -> str:
    """What a learned prompt or head has in common with those of other seeds, and with nothing else."""
    if isinstance(learned, Head):
        how: list[Any] = [learned.model, learned.method]  # a tuned encoder has a fingerprint of its own for each seed
    else:
        how = [learned.fingerprint, vars(learned.settings)]
    return json.dumps([how, learned.exif, _asked(learned), learned.class_names], sort_keys=True)


def describe(learned: LearnedPrompt | Head) -> str:
    """How it was learned, in words that are equal for all seeds: `2 shots, M = 16, end`.

    A prompt's unified context, its random start and the half "all" of the classes go without saying. The training of a file
    made by hand may hold anything.
    """
    training = learned.training
    words = [in_words(training["shots"])] if "shots" in training else []
    if isinstance(learned, Head):
        words.insert(0, learned.method)
    else:
        settings, init = learned.settings, training.get("init")
        variant = Variant(
            settings.n_ctx, settings.position, settings.csc, str(init) if init else None, keep_close=_keep_close(training)
        )
        by_field = variant.words()
        words += [by_field["n_ctx"], by_field["position"]]
        words += [by_field[field] for field in ("csc", "init", "keep_close") if getattr(variant, field)]
    if training.get("classes", "all") != "all":
        words.append(f"{training['classes']} classes")
    words += ["turned by EXIF"] * learned.exif
    return ", ".join(words)


def _keep_close(training: dict[str, Any]) -> float:
    recipe = training.get("recipe")
    weight = recipe.get("keep_close") if isinstance(recipe, dict) else None
    return float(weight) if isinstance(weight, (int, float)) else 0.0


def sources_of(learned: Sequence[LearnedPrompt | Head], files: Sequence[str]) -> list[str]:
    """Name what each was learned on and how: one name for all seeds of a thing, and for nothing else.

    Where two things read the same, the parts of their training that differ are named too. Where even that leaves two alike,
    or the same seed comes twice, each goes by its file.
    """
    names = [f"{run.training.get('data', '?')}, {describe(run)}" for run in learned]
    for places in grouped(range(len(learned)), lambda place: names[place]).values():
        asked = [_flat(_asked(learned[place])) for place in places]
        keys = sorted({key for entries in asked for key in entries})
        differ = [key for key in keys if len({str(entries.get(key)) for entries in asked}) > 1]
        for place, entries in zip(places, asked, strict=True):
            names[place] += "".join(f", {key} {entries.get(key)}" for key in differ)
    for places in grouped(range(len(learned)), lambda place: (names[place], learned[place].model)).values():
        runs = [learned[place] for place in places]
        if len({group_key(run) for run in runs}) > 1 or len({seed_of(run) for run in runs}) < len(runs):
            for place in places:
                names[place] += f", {files[place]}"
    return names


def seed_of(learned: LearnedPrompt | Head) -> int | None:
    """The seed; None also where a file made by hand says something else."""
    return seed if isinstance(seed := learned.training.get("seed"), int) else None


def label(cell: Cell, cells: Sequence[Cell]) -> str:
    """Name a cell's line among those of the others: its method, and of model and variant what is not the same in all."""
    words = [cell.method]
    if len({other.model for other in cells}) > 1:
        words.append(short_name(cell.model))
    if cell.variant:
        all_words = [other.variant.words() for other in cells if other.variant]
        words += [word for field, word in cell.variant.words().items() if len({other[field] for other in all_words}) > 1]
    return ", ".join(words)


def _asked(learned: LearnedPrompt | Head) -> dict[str, Any]:
    return {key: value for key, value in learned.training.items() if key in ASKED}


def _flat(asked: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the recipe beside the other entries."""
    recipe = asked.get("recipe")
    return {key: value for key, value in asked.items() if key != "recipe"} | (recipe if isinstance(recipe, dict) else {})
