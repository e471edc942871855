"""The points of a grid of experiments, what they have in common, and what each gave."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field

from ..choices import Classes, Device, Dtype, Position
from ..names import short_name


@dataclass(frozen=True)
class Variant:
    """How a prompt is learned. `n_ctx` None is 16, or the tokens of `init`; `init` None is a random context."""

    n_ctx: int | None = None
    position: Position = "end"
    csc: bool = False
    init: str | None = None
    recipe: str = "paper"


@dataclass(frozen=True)
class Cell:
    """A point of a grid. `shots` None takes all images; hand-written prompts see none: their shots and seed are 0."""

    method: str
    model: str
    shots: int | None = 0
    seed: int = 0
    variant: Variant | None = None

    @property
    def folder(self) -> str:
        """A name that reads well and is no other cell's."""
        words = [self.method, short_name(self.model)]
        if self.shots != 0:
            words += [f"{'all' if self.shots is None else self.shots}shots", f"seed{self.seed}"]
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]
        return re.sub(r"[^\w.=+-]+", "-", "-".join([*words, digest]))


@dataclass(frozen=True)
class Plan:
    """What all experiments of a grid have in common. `views` augmented views are encoded of each train image.

    With 0, a prompt learns from new ones in every epoch, and the other methods take as many as is usual.
    """

    template: str
    templates: tuple[str, ...]
    classes: Classes = "all"
    device: Device = "auto"
    dtype: Dtype = "float32"
    allow_pickle: bool = False
    views: int = 16


@dataclass(frozen=True)
class Result:
    """What an experiment gave, accuracies as shares in [0, 1]; None where it was left out, and `note` says why.

    Where the base classes are learned, `top1` is their accuracy, `new` that of the other classes, and `harmonic` the
    harmonic mean of both. `seconds` are those of learning, `parameters` the numbers learned, `peak_memory` in bytes that
    of the process so far.
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
