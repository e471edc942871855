"""Learned changes of the text features: w_k = normalize(t_k + b) or w_k = normalize(A t_k), all else frozen.

One bias b in R^p, or one matrix A, serves all classes. Source: CoOp's comparison with other fine-tuning methods. Both are
trained as CoOp trains its context, learning rate included. For the bias, none of the rates 2e-4 to 2 was better on both
EuroSAT and the demo tasks. For the matrix, 0.002 was the best of 2e-4 to 0.2 on EuroSAT's validation images with 16 shots
(with 4 shots 0.02 was), and it keeps what CLIP knows of the demo's shapes, which higher rates forget.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...learned.head import Head
from ..recipe import paper_recipe
from .descent import descend_as_paper
from .task import FewShotTask


def learn_bias(task: FewShotTask) -> Head:
    """Train b, from zero, by the paper's recipe."""
    return _learn(task, "text-bias", "a bias on the text features", torch.zeros(task.text.shape[1]), biased)


def learn_transform(task: FewShotTask) -> Head:
    """Train A, from the identity, by the paper's recipe."""
    return _learn(task, "text-transform", "a matrix on the text features", torch.eye(task.text.shape[1]), transformed)


def biased(text: Tensor, bias: Tensor) -> Tensor:
    """normalize(t_k + b) of text features [K, p] and a bias [p]."""
    return F.normalize(text + bias, dim=-1)


def transformed(text: Tensor, matrix: Tensor) -> Tensor:
    """normalize(A t_k) of text features [K, p] and a matrix [p, p]."""
    return F.normalize(text @ matrix.T, dim=-1)


def _learn(task: FewShotTask, method: str, trains: str, start: Tensor, tuned: Callable[[Tensor, Tensor], Tensor]) -> Head:
    recipe, scale = paper_recipe(int(task.counts.max()), len(task.class_names)), task.backbone.logit_scale
    learned = torch.nn.Parameter(start)
    descend_as_paper(task, lambda images: scale * images @ tuned(task.text, learned).T, learned, recipe)
    training = {"trains": trains, "recipe": recipe.as_dict()}
    return task.head(method, scale * tuned(task.text, learned), learned.numel(), training)
