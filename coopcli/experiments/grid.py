"""The points of a grid of experiments, what they have in common, and what each gave."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from ..choices import Classes, Device, Dtype, Position
from ..learning.methods import COOP, METHODS
from ..names import short_name

OnStep = Callable[[str, int, int], None]  # (name of a step, images done, images in all)


@dataclass(frozen=True)
class Variant:
    """How a prompt is learned. `n_ctx` None is 16, or the tokens of `init`; `init` None is a random context."""

    n_ctx: int | None = None
    position: Position = "end"
    csc: bool = False
    init: str | None = None
    recipe: str = "paper"
    keep_close: float = 0.0

    def words(self) -> dict[str, str]:
        """Each setting in words, by its field."""
        return {
            "n_ctx": f"M = {self.n_ctx or 16}",
            "position": self.position,
            "csc": "class-specific" if self.csc else "unified",
            "init": f'from "{self.init}"' if self.init else "random",
            "recipe": f"{self.recipe} recipe",
            "keep_close": f"keep-close {self.keep_close:g}",
        }


@dataclass(frozen=True)
class Cell:
    """A point of a grid. `shots` None takes all images; hand-written prompts see none: their shots and seed are 0."""

    method: str
    model: str
    shots: int | None = 0
    seed: int = 0
    variant: Variant | None = None

    def as_dict(self) -> dict[str, Any]:
        """The cell for a file; keep_close only where it is used, so that results of before there was --keep-close stay."""
        entry = asdict(self)
        if self.variant and not self.variant.keep_close:
            del entry["variant"]["keep_close"]
        return entry

    @property
    def folder(self) -> str:
        """A name that reads well and that no other cell has."""
        words = [self.method, short_name(self.model)]
        if self.shots != 0:
            words += [f"{'all' if self.shots is None else self.shots}shots", f"seed{self.seed}"]
        digest = hashlib.sha256(json.dumps(self.as_dict()).encode()).hexdigest()[:8]
        return re.sub(r"[^\w.=+-]+", "-", "-".join([*words, digest]))

    @property
    def without_seed(self) -> Cell:
        """What this cell has in common with those of other seeds."""
        return replace(self, seed=0)


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a cell; variants count for the method `coop` only."""

    methods: Sequence[str]
    models: Sequence[str]
    shots: Sequence[int | None]
    seeds: Sequence[int]
    variants: Sequence[Variant] = (Variant(),)

    def cells(self) -> list[Cell]:
        """The cells, in the order in which they are done."""
        cells = []
        for model, method in product(self.models, self.methods):
            if METHODS[method].hand_written:
                cells.append(Cell(method, model))
            else:
                variants = self.variants if method == COOP else (None,)
                cells += [Cell(method, model, *key) for key in product(self.shots, self.seeds, variants)]
        return cells


@dataclass(frozen=True)
class Plan:
    """What all experiments of a grid have in common. `views` augmented views are encoded of each train image.

    With 0, a prompt learns from new views in every epoch; the other methods then take as many as is usual. With `exif`,
    images are turned by their EXIF orientation; without `normalize`, the linear probe reads features of their own length.
    """

    template: str
    templates: tuple[str, ...]
    classes: Classes = "all"
    device: Device = "auto"
    dtype: Dtype = "float32"
    allow_pickle: bool = False
    views: int = 16
    exif: bool = False
    normalize: bool = True


@dataclass(frozen=True)
class Result:
    """What an experiment gave, accuracies as shares in [0, 1]; None where it was left out, and `note` says why.

    Where the base classes are learned, `top1` is their accuracy, `new` that of the other classes, and `harmonic` the
    harmonic mean of both. `seconds` is the time of learning, `parameters` the count of learned numbers, `peak_memory` the
    most bytes that the process has held so far. `learned_from` and `tested_on` are digests of all that was learned from, and
    of the test images: a result is kept for these only.
    """

    cell: Cell
    top1: float | None = None
    macro: float | None = None
    new: float | None = None
    harmonic: float | None = None
    images: int = 0
    train_images: int = 0
    parameters: int = 0
    seconds: float = 0.0
    note: str = ""
    few_shot_sha256: str | None = None
    fingerprint: str | None = None
    peak_memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    learned_from: str | None = None
    tested_on: str | None = None
