"""The layers of text and image towers as data, read from stock modules, and how one is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .frozen_linear import FrozenLinear

Map = Callable[[Tensor], Tensor]
# What oneDNN calls an activation that it computes within the product before it, by the config's name for it.
KERNELS = {"quick_gelu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_pytorch_tanh": ("gelu", "tanh")}
ACTIVATIONS: dict[str, Map] = {"gelu": F.gelu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


@dataclass(frozen=True)
class Layer:
    """One layer of a tower; `activation` is between the two linear layers of its MLP, `kernel` what oneDNN calls it.

    With `pre_norm` each half is x + f(norm(x)), as in CLIP and SigLIP; without it norm(x + f(x)), as in BERT.
    """

    norm1: Map
    qkv: FrozenLinear
    out: FrozenLinear
    norm2: Map
    fc1: FrozenLinear
    activation: Map
    fc2: FrozenLinear
    pre_norm: bool = True
    kernel: tuple[str, str] | None = None


def run_layer(
    layer: Layer,
    x: Tensor,
    attend: Callable[[Tensor], Tensor],
    qkv: Tensor | None = None,
    pooled: Tensor | None = None,
    fuse: bool = False,
) -> Tensor:
    """Run a layer on the rows x [N, d]; give the rows `pooled` [L] alone where no others are needed after it.

    `attend` maps queries, keys and values [N, 3d] to float32 [N, d]; `qkv` are these where they are known already. With
    `fuse`, activation and residuals are computed within the products: faster, without gradients, other last bits.
    """
    if qkv is None:
        qkv = layer.qkv(layer.norm1(x) if layer.pre_norm else x)
    mixed = attend(qkv)
    if pooled is not None:
        x, mixed = x.index_select(0, pooled), mixed.index_select(0, pooled)
    if not layer.pre_norm:
        x = layer.norm1(x + layer.out(mixed))
        return layer.norm2(x + layer.fc2(layer.activation(layer.fc1(x))))
    if fuse and layer.kernel:
        x = layer.out.plus(mixed, x)
        return layer.fc2.plus(layer.fc1.activated(layer.norm2(x), *layer.kernel), x)
    x = x + layer.out(mixed)
    return x + layer.fc2(layer.activation(layer.fc1(layer.norm2(x))))


def norm(stock: torch.nn.LayerNorm) -> Map:
    """Read a layer norm, computed in float32."""
    weight, bias = stock.weight.float(), stock.bias.float()
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, stock.eps)


def linear(stock: torch.nn.Linear) -> Map:
    """Read a linear layer, computed in float32."""
    weight, bias = stock.weight.float(), None if stock.bias is None else stock.bias.float()
    return lambda x: F.linear(x, weight, bias)


def frozen(*stock: torch.nn.Linear) -> FrozenLinear:
    """Make one linear layer of several that read the same input."""
    return FrozenLinear(torch.cat([part.weight for part in stock]), torch.cat([part.bias for part in stock]))


def pre_norm_layer(stock: Any, hidden_act: str) -> Layer:
    """Read a layer of CLIP or SigLIP, whose config names its activation."""
    attention, mlp = stock.self_attn, stock.mlp
    # x sigmoid(a x) = silu(a x) / a, and silu is one kernel: the factors go into the weights around it.
    a, activation = (1.702, F.silu) if hidden_act == "quick_gelu" else (1.0, ACTIVATIONS.get(hidden_act) or mlp.activation_fn)
    return Layer(
        norm1=norm(stock.layer_norm1),
        qkv=frozen(attention.q_proj, attention.k_proj, attention.v_proj),
        out=frozen(attention.out_proj),
        norm2=norm(stock.layer_norm2),
        fc1=FrozenLinear(mlp.fc1.weight * a, mlp.fc1.bias * a),
        activation=activation,
        fc2=FrozenLinear(mlp.fc2.weight / a, mlp.fc2.bias),
        kernel=KERNELS.get(hidden_act),
    )


def post_norm_layer(stock: Any) -> Layer:
    """Read a layer of BERT."""
    attention = stock.attention
    return Layer(
        norm1=norm(attention.output.LayerNorm),
        qkv=frozen(attention.self.query, attention.self.key, attention.self.value),
        out=frozen(attention.output.dense),
        norm2=norm(stock.output.LayerNorm),
        fc1=frozen(stock.intermediate.dense),
        activation=stock.intermediate.intermediate_act_fn,
        fc2=frozen(stock.output.dense),
        pre_norm=False,
    )
