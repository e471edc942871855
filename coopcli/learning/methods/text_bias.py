"""A learned bias on the text features: w_k = normalize(t_k + b), one b in R^p for all classes, all else frozen.

Source: CoOp's comparison with other fine-tuning methods. It is trained as CoOp trains its context, rate included: of the
rates 2e-4 to 2, none was better on both EuroSAT and the demo tasks.
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
    """Train b from zero by the paper's recipe."""
    recipe, scale = paper_recipe(int(task.counts.max()), len(task.class_names)), task.backbone.logit_scale
    bias = torch.nn.Parameter(torch.zeros(task.text.shape[1]))
    descend_as_paper(task, lambda images: scale * images @ biased(task.text, bias).T, bias, recipe)
    training = {"trains": "a bias on the text features", "recipe": asdict(recipe)}
    return task.head("text-bias", scale * biased(task.text, bias), bias.numel(), training)


def biased(text: Tensor, bias: Tensor) -> Tensor:
    """normalize(t_k + b) of text features [K, p] and a bias [p]."""
    return F.normalize(text + bias, dim=-1)
