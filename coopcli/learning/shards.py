"""The classes in chunks, shared out among the processes of a job: the same exact step, and the same bytes, in one or in many.

A chunk's classes are encoded together. Of a step only these numbers travel: for each chunk and image the log-sum-exp of its
logits, the true class's logit and the best class; and the gradient of the context, summed over chunks as a binary tree, of
which each process sends the sums that it has whole. Both are combined in the order of the chunks, whoever computed them.
So the bytes depend on the chunks, not on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.layouts import shared_prefix
from ..clip.prompts import PromptTokens
from ..clip.text_encoder import Layout, Recompute, TextEncoder
from ..parallel import gather_rows, gather_small, world

T = TypeVar("T")
Near = tuple[Tensor, float]  # class features [K, p] to stay close to, and how much that counts
Node = tuple[int, int]  # of the tree of sums: its level, and its place there


@dataclass(frozen=True)
class Chunk:
    """Classes to encode together: their numbers, in the order of their prompts, and how many rows these take."""

    classes: tuple[int, ...]
    rows: int


def cut(prompts: Sequence[PromptTokens], size: int, tree: bool = True) -> list[Chunk]:
    """Cut the sorted prompts into ceil(K / size) chunks of about equal rows; size 0: all in one, in their own order.

    In a `tree` prompts share their prefixes, and neighbours in sorted order the longest; else equal prompts share all or
    nothing. Equal prompts stay together, so there may be fewer chunks.
    """
    if not 0 < size < len(prompts):
        return [Chunk(tuple(range(len(prompts))), 0)]
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    new_rows = _new_rows([prompts[index] for index in order], tree)
    n_chunks, total = math.ceil(len(prompts) / size), sum(new_rows)
    chunks: dict[int, list[int]] = {}
    number = 0
    for place, (index, ends) in enumerate(zip(order, accumulate(new_rows), strict=True)):
        if new_rows[place]:  # equal prompts stay together
            number = max(number, min(n_chunks - 1, (ends - new_rows[place]) * n_chunks // total))
        chunks.setdefault(number, []).append(index)
    return [Chunk(tuple(classes), sum(_new_rows([prompts[k] for k in classes], tree))) for classes in chunks.values()]


def _new_rows(prompts: Sequence[PromptTokens], tree: bool) -> list[int]:
    """The rows that each prompt adds to those of the one before it."""
    rows = []
    for before, prompt in zip([(), *prompts[:-1]], prompts, strict=True):
        shared = shared_prefix(before, prompt)
        rows.append(len(prompt) - shared if tree or shared == len(prompt) else len(prompt))
    return rows


def add_neighbours(sums: dict[Node, Tensor], n: int) -> dict[Node, Tensor]:
    """Add sums of a binary tree over n leaves as far as both of two neighbours are there; all leaves give one sum, the root.

    Whoever has which of them: the additions are the same, so the bits are.
    """
    sums, level = dict(sums), 0
    while n > 1:
        for left in range(0, n, 2):
            pair = [(level, place) for place in (left, left + 1) if place < n]
            if all(node in sums for node in pair):
                values = [sums.pop(node) for node in pair]
                sums[level + 1, left // 2] = values[0] + values[1] if len(pair) == 2 else values[0]
        n, level = (n + 1) // 2, level + 1
    return sums


class ClassShards:
    """The chunks of all classes, of which this process encodes its own, with the loss and its gradient over all of them.

    A context [K, M, d] is sharded with its classes: `own` takes this process's part of it, `whole` gathers the parts. With one
    chunk nothing is shared out: every process of a job does the same.
    """

    def __init__(self, encoder: TextEncoder, prompts: Sequence[PromptTokens], size: int, context: Tensor) -> None:
        self.encoder, self.csc = encoder, context.ndim == 3
        chunks = cut(prompts, size, encoder.tower.causal)
        self.n_chunks, team = len(chunks), world()
        self.shared = self.n_chunks > 1
        parts = [replace(team, rank=rank).part(self.n_chunks) for rank in range(team.size)] if self.shared else [slice(0, 1)]
        own = parts[team.rank] if self.shared else parts[0]
        self.first = own.start
        self.chunk_counts = [part.stop - part.start for part in parts]
        self.class_counts = [sum(len(chunk.classes) for chunk in chunks[part]) for part in parts]
        self.order = torch.tensor([k for chunk in chunks for k in chunk.classes])
        self.own_classes = torch.tensor([k for chunk in chunks[own] for k in chunk.classes], dtype=torch.long)
        self.layouts: list[Layout] = []
        self.ranges: list[slice] = []  # of the chunks in `own_classes`
        end = 0
        for chunk in chunks[own]:
            self.ranges.append(slice(end, end := end + len(chunk.classes)))
            n_ctx = context.shape[1] if self.csc and self.shared else 0
            self.layouts += encoder.lay_out([_moved(prompts[k], (k - i) * n_ctx) for i, k in enumerate(chunk.classes)])
        self.most_rows = max(chunk.rows for chunk in chunks) if self.shared else self.layouts[0].tree.n_nodes
        leaves = [[(0, place) for place in range(part.start, part.stop)] for part in parts]
        self.nodes = [_whole_sums(of_part, self.n_chunks) for of_part in leaves]
        device = encoder.token_embedding.device
        place = torch.full((len(prompts),), -1)
        for classes in self.ranges:
            place[self.own_classes[classes]] = torch.arange(classes.stop - classes.start)
        self.place = place.to(device)  # of each class in its chunk
        number = torch.full((len(prompts),), -1)
        for i, classes in enumerate(self.ranges):
            number[self.own_classes[classes]] = i
        self.number = number.to(device)  # of each class's chunk among this process's, -1 in another's
        self.own_on_device = self.own_classes.to(device)
        self.places = torch.arange(max((part.stop - part.start for part in self.ranges), default=0), device=device)

    def own(self, tensor: Tensor) -> Tensor:
        """This process's part of a context or of a moment of it; all of a context that the classes share."""
        return tensor[self.own_classes] if self.csc and self.shared and tensor.ndim == 3 else tensor

    def whole(self, tensor: Tensor) -> Tensor:
        """A context, or a moment of it, of all classes in their order, on the CPU: from the parts of all processes."""
        if not (self.csc and self.shared and tensor.ndim == 3):
            return tensor.detach().clone().cpu()
        gathered = gather_rows(tensor.detach().cpu(), self.class_counts)
        return torch.empty_like(gathered).index_copy_(0, self.order, gathered)

    def backward(
        self, learned: torch.nn.Parameter, images: Tensor, labels: Tensor, recompute: Recompute, near: Near | None = None
    ) -> tuple[Tensor, Tensor]:
        """Set `learned.grad`; returns mean loss and accuracy of images [B, p], which are multiplied by the logit scale.

        The loss is cross-entropy and, with `near` (class features [K, p], weight), the mean squared distance to these:
        KgCoOp (Yao et al., CVPR 2023), Equations 5 and 6.
        """
        if not self.shared:
            text = self.encoder.encode_layouts(self.layouts, learned, recompute)
            logits = images @ text.T
            loss = F.cross_entropy(logits, labels)
            if near:
                loss = loss + near[1] * (text - near[0]).square().sum(-1).mean()
            loss.backward()
            return loss.detach(), (logits.detach().argmax(-1) == labels).float().mean()
        own = [learned.detach()[part] if self.csc else learned.detach() for part in self.ranges]
        contexts = [context.requires_grad_() for context in own]
        texts = self.encoder.encode_each(self.layouts, contexts, recompute)
        with torch.no_grad():
            summaries = gather_small(self._summaries(texts, images, labels, near), self.chunk_counts)  # [C, 5, B]
            lse = summaries[:, 0].logsumexp(0)
            best = summaries[:, 2].argmax(0)
            predicted = summaries[:, 3].gather(0, best[None])[0]
            loss = (lse - summaries[:, 1].sum(0)).mean() + summaries[:, 4, 0].sum()
            right = (predicted == labels).float().mean()
        gradients: dict[int, Tensor] = {}
        for i in reversed(range(len(texts))):
            text = texts.pop()
            with torch.no_grad():
                # The logits once more: kept from before, they would be [B, K], which of all images at a time is large.
                change = (images @ text.T).sub_(lse[:, None]).exp_()
                place = torch.where(self.number[labels] == i, self.place[labels], -1)
                change -= (self.places[: change.shape[1]] == place[:, None]).float()
                of_text = (change / len(labels)).T @ images
                if near:
                    of_text += (2 * near[1] / len(self.place)) * self._away(i, text, near)
            (gradients[i],) = torch.autograd.grad(text, contexts[i], of_text)
        learned.grad = self._gradient(learned, gradients)
        return loss, right

    def _summaries(self, texts: Sequence[Tensor], images: Tensor, labels: Tensor, near: Near | None) -> Tensor:
        """What the others need of this process's chunks, [its chunks, 5, B]."""
        rows = []
        for i, (text, classes) in enumerate(zip(texts, self.ranges, strict=True)):
            logits = images @ text.T
            true = logits.gather(1, self.place[labels].clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            true = torch.where(self.number[labels] == i, true, torch.zeros_like(true))
            best = logits.max(-1)
            predicted = self.own_on_device[classes][best.indices].float()  # which holds numbers up to 2^24
            distance = torch.zeros_like(true)
            if near:
                distance = distance + near[1] * self._away(i, text, near).square().sum() / len(self.place)
            rows.append(torch.stack([logits.logsumexp(-1), true, best.values, predicted, distance]))
        return torch.stack(rows) if rows else labels.new_zeros(0, 5, len(labels), dtype=torch.float32)

    def _away(self, i: int, text: Tensor, near: Near) -> Tensor:
        return text - near[0][self.own_on_device[self.ranges[i]]]

    def _gradient(self, learned: Tensor, gradients: dict[int, Tensor]) -> Tensor:
        if self.csc:
            return torch.cat([gradients[i] for i in range(len(gradients))]) if gradients else torch.zeros_like(learned)
        sums = add_neighbours({(0, self.first + i): value for i, value in gradients.items()}, self.n_chunks)
        own = self.nodes[world().rank]
        own_sums = torch.stack([sums[node] for node in own]) if own else learned.detach().new_zeros(0, *learned.shape)
        gathered = gather_small(own_sums, [len(nodes) for nodes in self.nodes])
        every = [node for nodes in self.nodes for node in nodes]
        (root,) = add_neighbours(dict(zip(every, gathered, strict=True)), self.n_chunks).values()
        return root


def _moved(prompt: PromptTokens, rows: int) -> PromptTokens:
    """The prompt with its context rows `rows` places earlier."""
    return tuple(token + rows if token < 0 else token for token in prompt) if rows else prompt


def _whole_sums(leaves: Sequence[Node], n: int) -> list[Node]:
    """The sums that a process with these leaves sends, in order."""
    return sorted(add_neighbours({leaf: torch.zeros(()) for leaf in leaves}, n))
