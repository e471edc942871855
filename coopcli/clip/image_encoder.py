"""Image towers that are Vision Transformers, on the same layers as the text towers, with weights packed for this CPU.

The features are those of the stock tower up to float rounding. Where oneDNN has no kernels, on GPUs, with gradients and for
other towers (ALIGN's EfficientNet, those of open_clip), the stock tower runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .frozen_linear import FrozenLinear
from .layers import Layer, Map, linear, norm, pre_norm_layer, run_layer
from .layouts import attend_all

ENCODING = b" encoding 2"  # to change when features get other last bits than before: part of the key of cached features


@dataclass(frozen=True)
class ImageEncoder:
    """An image tower, ready to be run: a linear layer of patches, rows to add to them, layers, and `finish`.

    `class_row` [1, d] comes before the patches of each image, and its last state alone is the feature; None in towers that
    pool all rows. `enter` is applied to the rows before the first layer. `finish` maps the rows pooled to features [n, p].
    """

    patches: FrozenLinear
    patch_size: int
    class_row: Tensor | None
    position_rows: Tensor
    enter: Map | None
    n_heads: int
    layers: Sequence[Layer]
    finish: Map

    def __call__(self, inputs: Tensor) -> Tensor:
        """Encode preprocessed images, float32 [n, 3, s, s]: features, float32 [n, p], not normalised."""
        n, channels, side = inputs.shape[:3]
        size, grid = self.patch_size, side // self.patch_size
        whole = inputs[..., : grid * size, : grid * size]  # as the stock convolution leaves out the rest
        squares = whole.reshape(n, channels, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
        rows = self.patches(squares.reshape(n * grid**2, -1)).float().view(n, grid**2, -1) + self.position_rows
        if self.class_row is not None:
            rows = torch.cat([self.class_row.expand(n, 1, -1), rows], dim=1)
        length = rows.shape[1]
        x = rows.flatten(0, 1)
        if self.enter:
            x = self.enter(x)
        first = None if self.class_row is None else torch.arange(0, n * length, length)

        def attend(qkv: Tensor) -> Tensor:
            return attend_all(qkv.float(), length, self.n_heads)  # in bfloat16 the CPU's is several times slower

        for layer in self.layers:
            x = run_layer(layer, x, attend, pooled=first if layer is self.layers[-1] else None, fuse=True)
        return self.finish(x)


def read_image_encoder(model: Any) -> ImageEncoder | None:
    """Read the image tower of a stock model; None for a tower, or on a machine, for which the stock one is run."""
    read = ENCODERS.get(getattr(getattr(model, "config", None), "model_type", ""))
    if read is None or not hasattr(model.vision_model, "embeddings"):
        return None
    with torch.no_grad():
        patches, _ = _patches(model.vision_model)
        return read(model) if patches.packed else None


def _patches(vision: Any) -> tuple[FrozenLinear, int]:
    """The convolution of patches as a linear layer, and their side in pixels."""
    stock = vision.embeddings.patch_embedding
    return FrozenLinear(stock.weight.flatten(1), stock.bias), int(stock.weight.shape[-1])


def _class_token(model: Any) -> ImageEncoder:
    """CLIP, MetaCLIP 2, AltCLIP and Chinese-CLIP: a class token, whose last state is projected."""
    vision, config = model.vision_model, model.vision_model.config
    positions = vision.embeddings.position_embedding.weight.float()
    final_norm, project = norm(vision.post_layernorm), linear(model.visual_projection)
    return ImageEncoder(
        *_patches(vision),
        class_row=vision.embeddings.class_embedding.float() + positions[:1],
        position_rows=positions[1:],
        enter=norm(vision.pre_layrnorm),
        n_heads=config.num_attention_heads,
        layers=[pre_norm_layer(layer, config.hidden_act) for layer in vision.encoder.layers],
        finish=lambda rows: project(final_norm(rows)),
    )


def _attention_pooled(model: Any) -> ImageEncoder | None:
    """SigLIP: no class token; a head attends to all rows."""
    vision, config = model.vision_model, model.vision_model.config
    if not getattr(vision, "use_head", False):
        return None
    positions, final_norm = vision.embeddings.position_embedding.weight.float(), norm(vision.post_layernorm)

    def finish(rows: Tensor) -> Tensor:
        states = final_norm(rows).to(vision.head.probe.dtype)
        features: Tensor = vision.head(states.view(-1, *positions.shape))
        return features.float()

    return ImageEncoder(
        *_patches(vision),
        class_row=None,
        position_rows=positions,
        enter=None,
        n_heads=config.num_attention_heads,
        layers=[pre_norm_layer(layer, config.hidden_act) for layer in vision.encoder.layers],
        finish=finish,
    )


ENCODERS: dict[str, Callable[[Any], ImageEncoder | None]] = {
    "clip": _class_token,
    "metaclip_2": _class_token,
    "altclip": _class_token,
    "chinese_clip": _class_token,
    "siglip": _attention_pooled,
}
