"""Prompts -> text features, every distinct token prefix computed once.

The text tower is causal: a token's state depends only on the tokens before it. So all prompts together form a tree, one
node for each distinct prefix, and the tower runs on the nodes: SOS and a shared context once for all classes, nothing
after EOS. The result is that of the stock tower on prompts padded to 77 positions, up to float rounding.

The nodes stand in depth-first order as rows of one [N, d] matrix, which is all that the linear layers see. Attention
runs on equal blocks of consecutive rows. A row may attend to its ancestors and itself; in depth-first order those
outside the block are among the ancestors of the block's first row, so a block's keys are that short path plus the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .prompts import Prompt

if TYPE_CHECKING:
    from transformers import CLIPModel

BLOCK = 32  # rows to an attention block: wide enough for the matrix units, narrow enough to waste little on masked pairs


class TokenTree:
    """The distinct prefixes of some prompts, laid out for attention in blocks.

    rows [N'] holds each node's token, or `-1 - j` for context row j, in depth-first order; depth [N'] its position.
    leaves [K] is the row of each prompt's EOS. N' is the number of nodes N, filled up to whole blocks.
    path [B, A] lists the ancestors of each block's first row; visible [B, 1, S, A + S] says which of them, and which of
    the block's own S rows, each row attends to.
    """

    def __init__(self, prompts: Sequence[Prompt], device: torch.device | str = "cpu") -> None:
        tokens: list[int] = []
        depths: list[int] = []
        parents: list[int] = []
        leaves = [0] * len(prompts)
        previous: Prompt = ()
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
            leaves[index] = branch[-1]
            previous = prompt

        self.n_nodes = len(tokens)
        blocks = max(1, round(self.n_nodes / BLOCK))
        size = -(-self.n_nodes // blocks)
        filler = blocks * size - self.n_nodes
        self.rows = torch.tensor(tokens + [0] * filler, device=device)
        self.depth = torch.tensor(depths + [0] * filler, device=device)
        self.leaves = torch.tensor(leaves, device=device)

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
        visible |= (own >= self.n_nodes)[:, :, None]  # filler rows attend anywhere: never read, but never NaN
        self.path = path.to(device)
        self.visible = visible[:, None].to(device)


def _ancestors(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while (node := parents[node]) >= 0:
        path.append(node)
    return path


class TextEncoder:
    """The text tower of a stock CLIPModel, run on a TokenTree."""

    def __init__(self, model: CLIPModel) -> None:
        text = model.text_model
        self.token_embedding = text.embeddings.token_embedding.weight
        self.position_embedding = text.embeddings.position_embedding.weight
        self.layers = list(text.encoder.layers)
        self.n_heads: int = text.config.num_attention_heads
        self.final_layer_norm = text.final_layer_norm
        self.projection = model.text_projection
        with torch.no_grad():
            # One matrix product for queries, keys and values.
            self.qkv = [
                tuple(
                    torch.cat([getattr(getattr(layer.self_attn, name), kind) for name in ("q_proj", "k_proj", "v_proj")])
                    for kind in ("weight", "bias")
                )
                for layer in self.layers
            ]

    @property
    def max_length(self) -> int:
        """Positions that a prompt may take: 77 for OpenAI's models."""
        return self.position_embedding.shape[0]

    @property
    def width(self) -> int:
        """d, the size of a token embedding and of a context vector."""
        return self.token_embedding.shape[1]

    def __call__(self, tree: TokenTree, context: Tensor | None = None) -> Tensor:
        """Text features of a tree's K prompts, L2-normalised float32 [K, p].

        `context` is float32 [M, d] or [K, M, d]; gradients flow to it, whatever the tower's dtype.
        """
        x = F.embedding(tree.rows.clamp(min=0), self.token_embedding)
        if context is not None:
            learned = context.reshape(-1, self.width).index_select(0, (-1 - tree.rows).clamp(min=0))
            x = torch.where((tree.rows < 0)[:, None], learned.to(x.dtype), x)
        x = x + F.embedding(tree.depth, self.position_embedding)
        for layer, (weight, bias) in zip(self.layers, self.qkv, strict=True):
            mixed = self._attend(tree, F.linear(layer.layer_norm1(x), weight, bias))
            if layer is self.layers[-1]:  # from here on only the EOS rows are needed
                x, mixed = x.index_select(0, tree.leaves), mixed.index_select(0, tree.leaves)
            x = x + layer.self_attn.out_proj(mixed)
            x = x + layer.mlp(layer.layer_norm2(x))
        return F.normalize(self.projection(self.final_layer_norm(x)).float(), dim=-1)

    def _attend(self, tree: TokenTree, qkv: Tensor) -> Tensor:
        """Each row's attention over its ancestors and itself: [N', 3d] -> [N', d]."""
        blocks, size = tree.visible.shape[0], tree.visible.shape[2]
        query, key, value = qkv.chunk(3, dim=-1)

        def by_head(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        def with_path(rows: Tensor) -> Tensor:
            path = rows.index_select(0, tree.path.flatten()).view(blocks, -1, rows.shape[-1])
            return torch.cat([path, rows.view(blocks, size, -1)], dim=1)

        mixed = F.scaled_dot_product_attention(
            by_head(query.view(blocks, size, -1)), by_head(with_path(key)), by_head(with_path(value)), attn_mask=tree.visible
        )
        return mixed.transpose(1, 2).reshape(blocks * size, -1)

    def lay_out(self, prompts: Sequence[Prompt], chunk: int = 0) -> list[TokenTree]:
        """The prompts as token trees: one, or with `chunk` > 0 one for every `chunk` prompts."""
        size = chunk or max(1, len(prompts))
        return [TokenTree(prompts[i : i + size], self.token_embedding.device) for i in range(0, len(prompts), size)]

    def encode_trees(self, trees: Sequence[TokenTree], context: Tensor | None = None) -> Tensor:
        """Text features of the prompts of all trees, L2-normalised float32 [K, p].

        Of several trees each runs again in backward: the same features and gradients in the memory of one.
        """
        if len(trees) == 1:
            return self(trees[0], context)
        return torch.cat([checkpoint(self, tree, context, use_reentrant=False) for tree in trees])

    def encode(self, prompts: Sequence[Prompt], context: Tensor | None = None, chunk: int = 0) -> Tensor:
        """Text features of K prompts, L2-normalised float32 [K, p]; see `lay_out` and `encode_trees`."""
        return self.encode_trees(self.lay_out(prompts, chunk), context)
