"""A linear layer with frozen weights, in the fastest form that the machine offers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenLinear:
    """y = x W^T + b for x [n, in], W [out, in], b [out]; differentiable in x alone, computed and returned in W's dtype.

    On a CPU the weight is kept in the order that oneDNN's kernels read, once for forward and, from the first gradient on,
    once for backward; a plain linear layer reorders it at every call.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.weight = _packed(weight)
        self._back: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return _PackedProduct.apply(x, self) if self.packed else F.linear(x, self.weight, self.bias)

    def activated(self, x: Tensor, kernel: str, algorithm: str) -> Tensor:
        """An activation of x W^T + b, by oneDNN's names for it, in one pass over the result. Forward only, W packed."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, self.bias, kernel, [], algorithm)

    def plus(self, x: Tensor, rest: Tensor) -> Tensor:
        """rest [n, out] + x W^T + b, in one pass over the result where W has rest's dtype. Forward only, W packed."""
        if rest.dtype != self.weight.dtype:
            return rest + self(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, rest, self.weight, self.bias, "add")

    @property
    def packed(self) -> bool:
        """Whether the weight is kept in oneDNN's order."""
        return bool(self.weight.is_mkldnn)

    @property
    def back(self) -> Tensor:
        """W^T, packed."""
        if self._back is None:
            self._back = _packed(self.weight.to_dense().t())
        return self._back


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: FrozenLinear) -> Tensor:
        ctx.linear = linear
        return torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.ops.mkldnn._linear_pointwise(gradient, ctx.linear.back, None, "none", [], ""), None


def _packed(weight: Tensor) -> Tensor:
    """Reorder the weight for oneDNN; return it unchanged where oneDNN has no kernels for it."""
    known = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not known or (weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight)
