"""Training recipes: every number, and the schedule of the learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import UsageError

LARGEST = 10**9  # of a recipe's numbers; no sensible one comes near it
FAST_STEPS = 200  # of --recipe fast, for any number of images


@dataclass(frozen=True)
class Recipe:
    """A training recipe. The defaults are the paper's, as in the reference's configs/trainers/CoOp."""

    epochs: int = 200
    lr: float = 0.002
    batch_size: int = 32  # 0: all images in every step
    warmup_epochs: int = 1
    warmup_lr: float | None = 1e-5  # None: a ramp up to lr
    momentum: float = 0.9  # SGD's; Adam's first beta
    weight_decay: float = 5e-4
    views: int = 16  # augmented views encoded of each image, an epoch draws one of them; 0: new views in every epoch
    optimizer: Literal["sgd", "adam"] = "sgd"
    keep_close: float = 0.0  # weight of the distance to the hand-written class features (KgCoOp, whose weight is 8)

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of its range, or an unknown optimizer."""
        least = dict.fromkeys(("lr", "batch_size", "warmup_epochs", "momentum", "weight_decay", "views", "keep_close"), 0)
        for name, smallest in {"epochs": 1, **least}.items():
            if not smallest <= getattr(self, name) <= LARGEST:  # False for NaN
                raise UsageError(
                    f"{name} of a recipe must be {smallest} to {LARGEST:,}, not {brief_number(getattr(self, name))}"
                )
        if self.warmup_lr is not None and not 0 <= self.warmup_lr <= LARGEST:
            raise UsageError(f"warmup_lr of a recipe must be 0 to {LARGEST:,}, not {brief_number(self.warmup_lr)}")
        if self.optimizer not in ("sgd", "adam"):
            raise UsageError(f'unknown optimizer "{self.optimizer}"; choose sgd or adam')

    def as_dict(self) -> dict[str, Any]:
        """The numbers for a file; keep_close only where it is used, so that files of other recipes stay what they were."""
        return {name: value for name, value in asdict(self).items() if name != "keep_close" or value}


def brief_number(value: float) -> str:
    """A number in an error message, however many digits it has."""
    return str(value) if abs(value) < 10**12 else f"a number over {10**12:,}" if value > 0 else f"one under {-(10**12):,}"


def paper_epochs(shots: int | None, n_classes: int) -> int:
    """Epochs of the paper: 50 for 1 shot, 100 for 2 and 4, 200 for more; with 1000 classes (ImageNet) always 50."""
    if n_classes >= 1000 or shots == 1:
        return 50
    return 100 if shots is not None and shots <= 4 else 200


def paper_recipe(shots: int | None, n_classes: int) -> Recipe:
    """The paper's recipe for a number of shots (None: all) and of classes."""
    return Recipe(epochs=paper_epochs(shots, n_classes))


def fast_recipe() -> Recipe:
    """Return FAST_STEPS steps of Adam, each over one view of all images: a step costs the same for 10 images as for 1000."""
    return Recipe(
        epochs=FAST_STEPS, lr=0.01, batch_size=0, warmup_epochs=40, warmup_lr=None, weight_decay=0.0, optimizer="adam"
    )


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of epoch 0..T-1: constant (or a ramp) during warm-up, then a cosine that starts at the full rate.

    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1) / recipe.warmup_epochs if recipe.warmup_lr is None else recipe.warmup_lr
    return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / recipe.epochs)) / 2
