"""Fine-tune the image encoder on the train images; the hand-written class features stay as they are.

logits(x) = s * f(x) . t, s the logit scale. Source: CoOp's comparison with other fine-tuning methods; the settings are our
own. On EuroSAT's validation images with `mini`, 16 shots, rates of 1e-5, 3e-5 and 1e-4 over 30 to 50 epochs gave about
39, 55 and 65 %. But the higher the rate, the more a model forgets, which hurt the paper's own fine-tuning.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ...clip.backbone import Backbone, fingerprint_of
from ...clip.decoders import decoders
from ...clip.openclip import OpenClipModel
from ...clip.pixels import prepare
from ...data.load import ImageItem
from ...errors import CoopError
from ...learned.head import Head
from ..recipe import Recipe, learning_rate
from ..training import deterministic
from .descent import descend
from .task import FewShotTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuning:
    """AdamW over new augmented views in every epoch, its rate a cosine after one epoch at a tenth."""

    epochs: int = 30
    lr: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.1


def learn(task: FewShotTask, settings: FineTuning | None = None) -> Head:
    """Train a copy of the image tower in float32; the head belongs to the tuned model, which is saved beside it.

    Raises CoopError for a model of open_clip, which could not be saved as a CLIPModel.
    """
    settings = settings or FineTuning()
    if isinstance(task.backbone.model, OpenClipModel):
        raise CoopError(f'fine-tuning works on CLIPModels; "{task.backbone.name}" is a model of open_clip')
    model = copy.deepcopy(task.backbone.model).float()
    learned = [*model.vision_model.parameters()]
    if hasattr(model, "visual_projection"):  # SigLIP's and ALIGN's towers end in the feature itself
        learned += model.visual_projection.parameters()
    size = sum(weight.numel() for weight in learned)
    logger.warning(
        "fine-tuning runs the image encoder forward and backward over %d images %d times, holds %.2g GB for its weights and "
        "optimizer beside the activations of %d images, and leaves a model of %.2g GB",
        len(task.labels), settings.epochs, 16 * size / 1e9, settings.batch_size,
        4 * sum(weight.numel() for weight in model.parameters()) / 1e9,
    )  # fmt: skip
    tuned = replace(task.backbone, model=model, dtype="float32", revision=None)
    train(tuned, learned, task, settings)
    model.requires_grad_(False)
    tuned = replace(tuned, fingerprint=fingerprint_of(model, tuned.tokenizer, tuned.image_processor))
    weights = task.backbone.logit_scale * task.text
    training = {"trains": "the image encoder", "base_fingerprint": task.backbone.fingerprint, **asdict(settings)}
    return task.head("fine-tune", weights, size, training, fingerprint=tuned.fingerprint, revision=None, tuned=tuned)


def train(tuned: Backbone, learned: Sequence[torch.nn.Parameter], task: FewShotTask, settings: FineTuning) -> None:
    """Train these weights of the image tower in place. Raises CoopError when the loss stops being a number."""
    text = (task.backbone.logit_scale * task.text).to(tuned.device)
    optimizer = torch.optim.AdamW(learned, settings.lr, weight_decay=settings.weight_decay)
    recipe = Recipe(epochs=settings.epochs, lr=settings.lr, warmup_lr=settings.lr / 10)
    for weight in learned:
        weight.requires_grad_(True)

    def pixels(epoch: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return view_pixels(tuned, task.train_items, [batch.tolist() for batch in batches], epoch)

    def logits(images: Tensor) -> Tensor:
        return tuned.image_tower(images) @ text.T

    def rate(epoch: float) -> float:
        return learning_rate(recipe, int(epoch))

    with deterministic(tuned.device):
        descend(pixels, task.labels, logits, optimizer, rate, settings.epochs, settings.batch_size, task.seed)


def view_pixels(
    backbone: Backbone, items: Sequence[ImageItem], batches: Sequence[Sequence[int]], view: int
) -> Iterator[Tensor]:
    """Yield pixels uint8 [B, 3, s, s] of one augmented view of each image, batch by batch, reading two batches ahead."""

    def pixels_of(item: ImageItem) -> np.ndarray:
        content = item.read()
        digest = blake2b(content, digest_size=16).digest()
        how = (backbone.preprocessing, content, item.name, digest, [view], backbone.exif)
        pixels: np.ndarray = submit(content, prepare, *how).result()[0]
        return pixels

    with decoders(many=False) as submit, ThreadPoolExecutor() as threads:
        ahead = deque(threads.map(pixels_of, [items[i] for i in batch]) for batch in batches[:2])
        for batch in [*batches[2:], [], []][: len(batches)]:
            ready = torch.from_numpy(np.stack(list(ahead.popleft())))
            ahead.append(threads.map(pixels_of, [items[i] for i in batch]))
            yield ready
