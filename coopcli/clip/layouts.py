"""How prompts are laid out as rows of one matrix, for towers of two kinds.

`TokenTree`, for causal towers: a token's state depends only on the tokens before it, so all prompts together form a tree,
one node for each distinct prefix. SOS and a shared context are computed once for all classes, nothing after EOS is.
The nodes are, in depth-first order, the rows of one [N, d] matrix, which is all that the linear layers see. Attention
runs on equal blocks of consecutive rows. A row may attend to its ancestors and itself; in depth-first order those
outside the block are among the ancestors of the block's first row, so a block's keys are that short path plus the block.

`TokenRows`, for bidirectional towers: every token sees its whole prompt, so prompts share nothing after the first layer.
The distinct prompts are packed without padding, in groups of equal length; or filled to the tower's full length where the
tower sees its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .prompts import PromptTokens

Pool = Literal["first", "end", "last"]
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
            shared = shared_prefix(previous, prompt)
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

    def attend(self, qkv: Tensor, n_heads: int) -> Tensor:
        """Attend from each row to its ancestors and itself: [N', 3d] -> float32 [N', d]."""
        blocks, size, d = self.visible.shape[0], self.visible.shape[2], qkv.shape[-1] // 3
        # In bfloat16 the CPU's fused attention is several times slower than in float32.
        query, own = qkv.float().view(blocks, size, 3 * d).split([d, 2 * d], dim=-1)
        path = own.flatten(0, 1).index_select(0, self.path.flatten()).view(blocks, -1, 2 * d)
        key, value = torch.cat([path, own], dim=1).chunk(2, dim=-1)

        def by_head(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (n_heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value), attn_mask=self.visible)
        return mixed.transpose(1, 2).reshape(blocks * size, d)


def shared_prefix(prompt: PromptTokens, other: PromptTokens) -> int:
    """Count the tokens that two prompts begin with alike."""
    shared, most = 0, min(len(prompt), len(other))
    while shared < most and prompt[shared] == other[shared]:
        shared += 1
    return shared


def _ancestors(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while (node := parents[node]) >= 0:
        path.append(node)
    return path


class TokenRows:
    """Some prompts for a tower in which every token sees its whole prompt.

    rows [N] holds each place's token, or `-1 - j` for context row j; depth [N] its position. leaves [L] is the pooled row of
    each distinct prompt: its `first`, its `last`, or the last before the filling, its `end`; leaf_of [K] is the leaf of
    each prompt. With `length` > 0 every prompt is filled to that many tokens with the id `fill`. groups lists (rows, length)
    of prompts of equal length, in order.
    """

    def __init__(
        self, prompts: Sequence[PromptTokens], device: torch.device | str, pool: Pool, length: int = 0, fill: int = 0
    ) -> None:
        distinct = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
        number = {prompt: leaf for leaf, prompt in enumerate(distinct)}
        filled = [prompt + (fill,) * (length - len(prompt)) for prompt in distinct]
        lengths = [len(prompt) for prompt in filled]
        ends = torch.tensor(lengths).cumsum(0)
        self.n_nodes = int(ends[-1])
        self.rows = torch.tensor([token for prompt in filled for token in prompt], device=device)
        self.depth = torch.tensor([depth for count in lengths for depth in range(count)], device=device)
        own = torch.tensor([len(prompt) for prompt in distinct])
        starts = ends - torch.tensor(lengths)
        self.leaves = {"first": starts, "end": starts + own - 1, "last": ends - 1}[pool].to(device)
        self.leaf_of = torch.tensor([number[prompt] for prompt in prompts], device=device)
        self.groups = [(size * sum(1 for _ in equal), size) for size, equal in groupby(lengths)]

    def attend(self, qkv: Tensor, n_heads: int) -> Tensor:
        """Attend from each row to all rows of its prompt: [N, 3d] -> float32 [N, d]."""
        mixed = []
        for part, (_, length) in zip(qkv.float().split([rows for rows, _ in self.groups]), self.groups, strict=True):
            mixed.append(attend_all(part, length, n_heads))
        return torch.cat(mixed)


def attend_all(qkv: Tensor, length: int, n_heads: int) -> Tensor:
    """Attend from each row to all rows of its sequence, which are `length` rows each: [N, 3d] -> [N, d]."""
    query, key, value = qkv.view(-1, length, 3, n_heads, qkv.shape[-1] // (3 * n_heads)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(qkv), -1)
