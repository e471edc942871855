"""Encode prompts as text features, on the text tower of any family, with nothing computed twice.

A causal tower runs on a `TokenTree`, any other on `TokenRows` (layouts.py). The result is that of the stock model on padded
prompts, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..machine import free_memory
from ..parallel import launched
from .layers import run_layer
from .layouts import TokenRows, TokenTree
from .prompts import PromptTokens
from .towers import TextTower, read_tower

if TYPE_CHECKING:
    from transformers import CLIPModel

Recompute = Literal["nothing", "chunks", "layers"]  # what runs again in backward, to save memory
CHUNK_NODES = 4096  # rows of a chunk; ImageNet's 1000 classes around one context have 3,804


@dataclass(frozen=True)
class Layout:
    """A tree, or rows, with all that does not depend on the context, computed once.

    x [N', d] is the input of the first layer, qkv [N', 3d] that layer's queries, keys and values. Each call fills in the
    rows `context_rows` [C] anew, from the context's rows `slots` at the positions `depths`; these are distinct pairs [U], and
    `pair_of` [C] is the pair of each row, or None where every row is a pair of its own.
    """

    tree: TokenTree | TokenRows
    x: Tensor
    qkv: Tensor
    context_rows: Tensor
    slots: Tensor
    depths: Tensor
    pair_of: Tensor | None = None


def _again(function: Callable[..., Tensor], *given: object) -> Tensor:
    """Call a function now, and again in backward: nothing inside it is kept until then."""
    features: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return features


class TextEncoder:
    """The text tower of a model, run on a layout of prompts. `model` may also be a `TextTower` read already."""

    def __init__(self, model: CLIPModel | TextTower) -> None:
        self.tower = model if isinstance(model, TextTower) else read_tower(model)
        self.token_embedding, self.layers = self.tower.token_embedding, self.tower.layers

    @property
    def max_length(self) -> int:
        """The most tokens that a prompt may have: 77 for OpenAI's models."""
        return self.tower.position_rows.shape[0]

    @property
    def width(self) -> int:
        """d, the size of a token embedding and of a context vector."""
        return self.token_embedding.shape[1]

    @property
    def feature_width(self) -> int:
        """p, the size of a text feature."""
        return self.tower.feature_width

    @torch.no_grad()
    def lay_out(self, prompts: Sequence[PromptTokens], chunk: int = 0) -> list[Layout]:
        """Lay out the prompts: all together, or with `chunk` > 0 every `chunk` prompts."""
        size = chunk or max(1, len(prompts))
        return [self._lay_out(prompts[i : i + size]) for i in range(0, len(prompts), size)]

    def _arrange(self, prompts: Sequence[PromptTokens], device: torch.device | str) -> TokenTree | TokenRows:
        tower = self.tower
        if tower.causal:
            return TokenTree(prompts, device)
        if tower.fill is None:
            return TokenRows(prompts, device, tower.pool)
        return TokenRows(prompts, device, tower.pool, self.max_length, tower.fill)

    def _lay_out(self, prompts: Sequence[PromptTokens]) -> Layout:
        tree = self._arrange(prompts, self.token_embedding.device)
        tokens, positions = F.embedding(tree.rows.clamp(min=0), self.token_embedding), self.tower.position_rows
        x = self._enter((tokens + F.embedding(tree.depth, positions)).float())
        context_rows = (tree.rows < 0).nonzero()[:, 0]
        slots, depths, pair_of = -1 - tree.rows[context_rows], tree.depth[context_rows], None
        if not self.tower.causal:
            (slots, depths), pair_of = torch.unique(torch.stack([slots, depths]), dim=1, return_inverse=True)
        return Layout(tree, x, self._first_qkv(x), context_rows, slots, depths, pair_of)

    def _enter(self, x: Tensor) -> Tensor:
        return self.tower.embed_norm(x) if self.tower.embed_norm else x

    def _first_qkv(self, x: Tensor) -> Tensor:
        first = self.layers[0]
        return first.qkv(first.norm1(x) if first.pre_norm else x)

    def __call__(self, layout: Layout, context: Tensor | None = None, recompute_layers: bool = False) -> Tensor:
        """Encode the K prompts of a layout: L2-normalised float32 [K, p].

        `context` is float32 [M, d] or [K, M, d]; gradients flow to it, whatever the tower's dtype.
        """
        tree, x, qkv = layout.tree, layout.x, layout.qkv
        if context is not None:
            learned = context.reshape(-1, self.width).index_select(0, layout.slots)
            learned = self._enter(learned + F.embedding(layout.depths, self.tower.position_rows))
            learned_qkv = self._first_qkv(learned)
            if layout.pair_of is not None:
                learned, learned_qkv = learned.index_select(0, layout.pair_of), learned_qkv.index_select(0, layout.pair_of)
            x = x.index_copy(0, layout.context_rows, learned)
            qkv = qkv.index_copy(0, layout.context_rows, learned_qkv)
        for number in range(len(self.layers)):
            given = (tree, number, x, None if number else qkv)
            x = _again(self._run_layer, *given) if recompute_layers else self._run_layer(*given)
        return F.normalize(self.tower.finish(x), dim=-1).index_select(0, tree.leaf_of)

    def _run_layer(self, tree: TokenTree | TokenRows, number: int, x: Tensor, qkv: Tensor | None) -> Tensor:
        """Run one layer on the rows x [N', d], with its queries, keys and values where they are known already."""
        layer = self.layers[number]
        pooled = tree.leaves if layer is self.layers[-1] else None  # only these rows are needed in the end
        return run_layer(layer, x, lambda known: tree.attend(known, self.tower.n_heads), qkv, pooled)

    def fixed_chunk(self, prompts: Sequence[PromptTokens]) -> int:
        """Choose how many classes to encode at a time (0: all), by the number of rows alone.

        The chunks set the order in which gradients are summed, and with it their last bits. So they must not depend on the
        memory that happens to be free.
        """
        n_chunks = math.ceil(self._arrange(prompts, "cpu").n_nodes / CHUNK_NODES)
        n_chunks = 1 << (n_chunks - 1).bit_length()  # a power of two: processes that share them have whole sums of them
        return math.ceil(len(prompts) / n_chunks) if n_chunks > 1 else 0

    def fitting_recomputation(self, layouts: Sequence[Layout]) -> Recompute:
        """Choose what to run again in backward so that training takes at most half of the free memory."""
        # Kept for backward, for each row and layer: residual stream (2 d), q, k, v and those of the path (7 d), attention
        # (2 d), hidden state of the MLP (4 d).
        needed = [layout.tree.n_nodes * len(self.layers) * 15 * self.width * 4 for layout in layouts]
        device = self.token_embedding.device
        sharing = launched().local_size if device.type == "cpu" else 1
        available = free_memory(device) // (2 * sharing)
        return "nothing" if sum(needed) <= available else "chunks" if max(needed, default=0) <= available else "layers"

    def encode_layouts(
        self, layouts: Sequence[Layout], context: Tensor | None = None, recompute: Recompute = "nothing"
    ) -> Tensor:
        """Encode the prompts of all layouts: L2-normalised float32 [K, p].

        In backward, `recompute` runs each layout again ("chunks"), and within it each layer ("layers"), to keep less in
        memory: the features and gradients are the same to the bit.
        """
        features = self.encode_each(layouts, [context] * len(layouts), recompute)
        return features[0] if len(features) == 1 else torch.cat(features)

    def encode_each(
        self, layouts: Sequence[Layout], contexts: Sequence[Tensor | None], recompute: Recompute = "nothing"
    ) -> list[Tensor]:
        """Encode as `encode_layouts` does, each layout with its own context: the features [k, p] of each."""
        layers, pairs = recompute == "layers", zip(layouts, contexts, strict=True)
        if recompute == "nothing" or len(layouts) == 1:
            return [self(*pair, layers) for pair in pairs]
        return [_again(self, *pair, layers) for pair in pairs]

    def encode(self, prompts: Sequence[PromptTokens], context: Tensor | None = None, chunk: int = 0) -> Tensor:
        """Encode K prompts: L2-normalised float32 [K, p]; with `chunk` > 0, so many are laid out at a time."""
        size = chunk or max(1, len(prompts))
        features = [self(self.lay_out(prompts[i : i + size])[0], context) for i in range(0, len(prompts), size)]
        return features[0] if len(features) == 1 else torch.cat(features)
