"""The few-shot task that a method learns from, and the head that it gives."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...clip.backbone import Backbone
from ...data.load import ImageItem
from ...learned.head import Head
from ..training import TINY, one_thread


@dataclass(frozen=True)
class FewShotTask:
    """A few-shot task of K classes in features of one backbone; all features are L2-normalised float32 on the CPU.

    `text` [K, p] are the hand-written class features; `train` [n, p] those of the train images, `views` [n, V, p] those of
    augmented views of each, `labels` [n] their classes in 0..K-1; `val` [m, p] and `val_labels` [m] likewise, m may be 0.
    With `raw`, `train` and `val` have the length that the image tower gives them.
    """

    backbone: Backbone
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    text: Tensor
    train: Tensor
    views: Tensor
    labels: Tensor
    val: Tensor
    val_labels: Tensor
    train_items: tuple[ImageItem, ...]
    seed: int
    raw: bool = False

    @property
    def counts(self) -> Tensor:
        """Number of train images of each class, [K]."""
        return self.labels.bincount(minlength=len(self.class_names))

    def threads(self) -> AbstractContextManager[None]:
        """Use one thread where the class features are so few that a second one only costs time."""
        return one_thread() if self.text.numel() < TINY else nullcontext()

    def head(self, method: str, weights: Tensor, parameters: int, training: dict[str, Any], **more: Any) -> Head:
        """Make the head of these weights; its `training` holds the number of trained parameters and what the method chose."""
        return Head(
            method=method,
            weights=weights.detach().float(),
            class_names=self.class_names,
            folders=self.folders,
            **{
                "model": self.backbone.name,
                "revision": self.backbone.revision,
                "fingerprint": self.backbone.fingerprint,
                "exif": self.backbone.exif,
                **more,
            },
            training={
                "parameters": parameters,
                **training,
                "images": len(self.labels),
                "val_images": len(self.val_labels),
                "seed": self.seed,
                "dtype": self.backbone.dtype,
                "device": self.backbone.device.type,
                "torch": torch.__version__,
            },
        )


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit [n, K] is that of their label [n]."""
    return float((logits.argmax(-1) == labels).float().mean())
