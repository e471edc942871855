"""A learned transformation of the text features: w_k = normalize(A t_k), one matrix A for all classes, all else frozen.

Source: CoOp's comparison with other fine-tuning methods. It is trained as CoOp trains its context, rate included: on
EuroSAT's validation images 0.002 was the best of 2e-4 to 0.2 for 16 shots (for 4 shots 0.02 was), and it spares the
demo's shapes, whose names say it all, where higher rates forget them.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from ...learned.head import Head
from ..recipe import paper_recipe
from .descent import descend_as_paper
from .task import Task


def learn(task: Task) -> Head:
    """Train A from the identity by the paper's recipe."""
    recipe, scale = paper_recipe(int(task.counts.max()), len(task.class_names)), task.backbone.logit_scale
    matrix = torch.nn.Parameter(torch.eye(task.text.shape[1]))
    descend_as_paper(task, lambda images: scale * images @ transformed(task.text, matrix).T, matrix, recipe)
    training = {"trains": "a matrix on the text features", "recipe": asdict(recipe)}
    return task.head("text-transform", scale * transformed(task.text, matrix), matrix.numel(), training)


def transformed(text: Tensor, matrix: Tensor) -> Tensor:
    """normalize(A t_k) of text features [K, p] and a matrix [p, p]."""
    return F.normalize(text @ matrix.T, dim=-1)
