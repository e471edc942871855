"""Encode prompts as text features, computing every distinct token prefix once.

The text tower is causal: a token's state depends only on the tokens before it. So all prompts together form a tree, one
node for each distinct prefix, and the tower runs on the nodes: SOS and a shared context once for all classes, nothing
after EOS. The result is that of the stock tower on prompts padded to 77 positions, up to float rounding.

The nodes are, in depth-first order, the rows of one [N, d] matrix, which is all that the linear layers see. Attention
runs on equal blocks of consecutive rows. A row may attend to its ancestors and itself; in depth-first order those
outside the block are among the ancestors of the block's first row, so a block's keys are that short path plus the block.
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
from .frozen_linear import FrozenLinear
from .prompts import PromptTokens

if TYPE_CHECKING:
    from transformers import CLIPModel
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

Recompute = Literal["nothing", "chunks", "layers"]  # what runs again in backward, to save memory
CHUNK_NODES = 4096  # of a chunk; ImageNet's 1000 classes around one context have 3,804
BLOCK = 32  # rows per attention block: enough for the matrix units, few enough to waste little on masked pairs


class TokenTree:
    """The distinct prefixes of some prompts, laid out for attention in blocks.

    rows [N'] holds each node's token, or `-1 - j` for context row j, in depth-first order; depth [N'] its position.
    leaves [L] is the row of each distinct prompt's EOS, and leaf_of [K] the leaf of each prompt: equal prompts have one
    feature, to the bit. N' is the number of nodes N, padded to whole blocks.
    path [B, A] lists the ancestors of each block's first row; visible [B, 1, S, A + S] marks which of them, and which of
    the block's own S rows, each row attends to.
    """

    def __init__(self, prompts: Sequence[PromptTokens], device: torch.device | str = "cpu") -> None:
        tokens: list[int] = []
        depths: list[int] = []
        parents: list[int] = []
        leaves: list[int] = []
        leaf_of = [0] * len(prompts)
        previous: PromptTokens = ()
        branch: list[int] = []  # the nodes of the previous prompt, from SOS to EOS
        # Neighbours in sorted order share the longest prefixes, and sorted order is depth-first order.
        for index in sorted(range(len(prompts)), key=prompts.__getitem__):
            prompt = prompts[index]
            shared = 0
            while shared < min(len(previous), len(prompt)) and previous[shared] == prompt[shared]:
                shared += 1
            del branch[shared:]
            for depth in range(shared, len(prompt)):
                parents.append(branch[-1] if branch else -1)
                branch.append(len(tokens))
                tokens.append(prompt[depth])
                depths.append(depth)
            if prompt != previous:
                leaves.append(branch[-1])
            leaf_of[index] = len(leaves) - 1
            previous = prompt

        self.n_nodes = len(tokens)
        size = math.ceil(self.n_nodes / max(1, round(self.n_nodes / BLOCK)))
        blocks = math.ceil(self.n_nodes / size)
        filler = blocks * size - self.n_nodes
        self.rows = torch.tensor(tokens + [0] * filler, device=device)
        self.depth = torch.tensor(depths + [0] * filler, device=device)
        self.leaves = torch.tensor(leaves, device=device)
        self.leaf_of = torch.tensor(leaf_of, device=device)

        # Preorder makes ancestry an interval test: a is an ancestor of (or is) q when a <= q < subtree_end[a].
        subtree_end = list(range(1, self.n_nodes + 1)) + [0] * filler
        for node in range(self.n_nodes - 1, 0, -1):
            subtree_end[parents[node]] = max(subtree_end[parents[node]], subtree_end[node])
        starts = [_ancestors(parents, block * size) for block in range(blocks)]
        longest = max(len(path) for path in starts)
        path = torch.tensor([path + [0] * (longest - len(path)) for path in starts], dtype=torch.long).view(blocks, longest)
        given = torch.arange(longest) < torch.tensor([len(path) for path in starts])[:, None]
        own = torch.arange(blocks * size).view(blocks, size)
        keys = torch.cat([path, own], dim=1)
        ends = torch.tensor(subtree_end)[keys]
        visible = (keys[:, None, :] <= own[:, :, None]) & (own[:, :, None] < ends[:, None, :])
        visible[:, :, :longest] &= given[:, None, :]
        visible |= (own >= self.n_nodes)[:, :, None]  # padding rows attend to everything: never read, never NaN
        self.path = path.to(device)
        self.visible = visible[:, None].to(device)


def _ancestors(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while (node := parents[node]) >= 0:
        path.append(node)
    return path


@dataclass(frozen=True)
class Layout:
    """A tree with all that does not depend on the context, computed once.

    x [N', d] is the input of the first layer, qkv [N', 3d] that layer's queries, keys and values. Each call fills in the
    rows `context_rows` [C] anew, each from its row `slots` [C] of the context.
    """

    tree: TokenTree
    x: Tensor
    qkv: Tensor
    context_rows: Tensor
    slots: Tensor


@dataclass(frozen=True)
class _Layer:
    """One layer of the tower; `activation` is between the two linear layers of its MLP."""

    norm1: Callable[[Tensor], Tensor]
    qkv: FrozenLinear
    out: FrozenLinear
    norm2: Callable[[Tensor], Tensor]
    fc1: FrozenLinear
    activation: Callable[[Tensor], Tensor]
    fc2: FrozenLinear


def _norm(stock: torch.nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    weight, bias = stock.weight.float(), stock.bias.float()
    return lambda x: F.layer_norm(x, stock.normalized_shape, weight, bias, stock.eps)


@torch.no_grad()
def _layer(stock: CLIPEncoderLayer, quick_gelu: bool) -> _Layer:
    attention, mlp = stock.self_attn, stock.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    # x sigmoid(a x) = silu(a x) / a, and silu is one kernel: the factors go into the weights around it.
    a, activation = (1.702, F.silu) if quick_gelu else (1.0, mlp.activation_fn)
    return _Layer(
        norm1=_norm(stock.layer_norm1),
        qkv=FrozenLinear(torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])),
        out=FrozenLinear(attention.out_proj.weight, attention.out_proj.bias),
        norm2=_norm(stock.layer_norm2),
        fc1=FrozenLinear(mlp.fc1.weight * a, mlp.fc1.bias * a),
        activation=activation,
        fc2=FrozenLinear(mlp.fc2.weight / a, mlp.fc2.bias),
    )


def _again(function: Callable[..., Tensor], *given: object) -> Tensor:
    """Call a function now, and again in backward: nothing inside it is kept until then."""
    features: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return features


class TextEncoder:
    """The text tower of a stock CLIPModel, run on a TokenTree."""

    def __init__(self, model: CLIPModel) -> None:
        text = model.text_model
        self.token_embedding = text.embeddings.token_embedding.weight
        self.position_embedding = text.embeddings.position_embedding.weight
        self.n_heads: int = text.config.num_attention_heads
        self.layers = [_layer(layer, text.config.hidden_act == "quick_gelu") for layer in text.encoder.layers]
        self.final_layer_norm = _norm(text.final_layer_norm)
        self.projection = model.text_projection

    @property
    def max_length(self) -> int:
        """The most tokens that a prompt may have: 77 for OpenAI's models."""
        return self.position_embedding.shape[0]

    @property
    def width(self) -> int:
        """d, the size of a token embedding and of a context vector."""
        return self.token_embedding.shape[1]

    @property
    def feature_width(self) -> int:
        """p, the size of a text feature."""
        return self.projection.weight.shape[0]

    @torch.no_grad()
    def lay_out(self, prompts: Sequence[PromptTokens], chunk: int = 0) -> list[Layout]:
        """Arrange the prompts as token trees: one, or with `chunk` > 0 one for every `chunk` prompts."""
        size = chunk or max(1, len(prompts))
        return [self._lay_out(prompts[i : i + size]) for i in range(0, len(prompts), size)]

    def _lay_out(self, prompts: Sequence[PromptTokens]) -> Layout:
        tree = TokenTree(prompts, self.token_embedding.device)
        x = F.embedding(tree.rows.clamp(min=0), self.token_embedding) + F.embedding(tree.depth, self.position_embedding)
        x = x.float()
        first = self.layers[0]
        context_rows = (tree.rows < 0).nonzero()[:, 0]
        return Layout(tree, x, first.qkv(first.norm1(x)), context_rows, -1 - tree.rows[context_rows])

    def __call__(self, layout: Layout, context: Tensor | None = None, recompute_layers: bool = False) -> Tensor:
        """Encode the K prompts of a layout: L2-normalised float32 [K, p].

        `context` is float32 [M, d] or [K, M, d]; gradients flow to it, whatever the tower's dtype.
        """
        tree, x, qkv, first = layout.tree, layout.x, layout.qkv, self.layers[0]
        if context is not None:
            learned = context.reshape(-1, self.width).index_select(0, layout.slots)
            learned = learned + F.embedding(tree.depth[layout.context_rows], self.position_embedding)
            x = x.index_copy(0, layout.context_rows, learned)
            qkv = qkv.index_copy(0, layout.context_rows, first.qkv(first.norm1(learned)))
        for number in range(len(self.layers)):
            given = (tree, number, x, None if number else qkv)
            x = _again(self._run_layer, *given) if recompute_layers else self._run_layer(*given)
        features = F.normalize(F.linear(self.final_layer_norm(x), self.projection.weight.float()), dim=-1)
        return features.index_select(0, tree.leaf_of)

    def _run_layer(self, tree: TokenTree, number: int, x: Tensor, qkv: Tensor | None) -> Tensor:
        """Run one layer on the rows x [N', d], with its queries, keys and values where they are known already."""
        layer = self.layers[number]
        mixed = self._attend(tree, layer.qkv(layer.norm1(x)) if qkv is None else qkv)
        if layer is self.layers[-1]:  # from here on only the EOS rows are needed
            x, mixed = x.index_select(0, tree.leaves), mixed.index_select(0, tree.leaves)
        x = x + layer.out(mixed)
        return x + layer.fc2(layer.activation(layer.fc1(layer.norm2(x))))

    def _attend(self, tree: TokenTree, qkv: Tensor) -> Tensor:
        """Attend from each row to its ancestors and itself: [N', 3d] -> float32 [N', d]."""
        blocks, size, d = tree.visible.shape[0], tree.visible.shape[2], self.width
        # In bfloat16 the CPU's fused attention is several times slower than in float32.
        query, own = qkv.float().view(blocks, size, 3 * d).split([d, 2 * d], dim=-1)
        path = own.flatten(0, 1).index_select(0, tree.path.flatten()).view(blocks, -1, 2 * d)
        key, value = torch.cat([path, own], dim=1).chunk(2, dim=-1)

        def by_head(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value), attn_mask=tree.visible)
        return mixed.transpose(1, 2).reshape(blocks * size, d)

    def fixed_chunk(self, prompts: Sequence[PromptTokens]) -> int:
        """Choose how many classes to encode at a time (0: all), by the number of tree nodes alone.

        The chunks set the order in which gradients are summed, and with it their last bits. So they must not depend on the
        memory that happens to be free.
        """
        n_chunks = math.ceil(TokenTree(prompts).n_nodes / CHUNK_NODES)
        return math.ceil(len(prompts) / n_chunks) if n_chunks > 1 else 0

    def fitting_recomputation(self, layouts: Sequence[Layout]) -> Recompute:
        """Choose what to run again in backward so that training takes at most half of the free memory."""
        # Kept for backward, for each row and layer: residual stream (2 d), q, k, v and those of the path (7 d), attention
        # (2 d), hidden state of the MLP (4 d).
        needed = [layout.tree.n_nodes * len(self.layers) * 15 * self.width * 4 for layout in layouts]
        available = free_memory(self.token_embedding.device) // 2
        return "nothing" if sum(needed) <= available else "chunks" if max(needed) <= available else "layers"

    def encode_layouts(
        self, layouts: Sequence[Layout], context: Tensor | None = None, recompute: Recompute = "nothing"
    ) -> Tensor:
        """Encode the prompts of all layouts: L2-normalised float32 [K, p].

        In backward, `recompute` runs each layout again ("chunks"), and within it each layer ("layers"), to keep less in
        memory: the features and gradients are the same to the bit.
        """
        layers = recompute == "layers"
        if recompute == "nothing" or len(layouts) == 1:
            features = [self(layout, context, layers) for layout in layouts]
        else:
            features = [_again(self, layout, context, layers) for layout in layouts]
        return features[0] if len(features) == 1 else torch.cat(features)

    def encode(self, prompts: Sequence[PromptTokens], context: Tensor | None = None, chunk: int = 0) -> Tensor:
        """Encode K prompts: L2-normalised float32 [K, p]; see `lay_out` and `encode_layouts`."""
        return self.encode_layouts(self.lay_out(prompts, chunk), context)
