"""Learned prompts and heads with made-up numbers."""

import torch
import torch.nn.functional as F

from coopcli.clip.prompts import ContextSettings
from coopcli.learned.head import Head
from coopcli.learned.prompt import LearnedPrompt


def some_prompt(csc=False, **changes):
    context = torch.randn((2, 4, 8) if csc else (4, 8), generator=torch.Generator().manual_seed(0))
    fields = dict(
        context=context, settings=ContextSettings(4, "middle", csc), class_names=("Stern ☆", "ring"), folders=("s", "r"),
        model="mini", revision=None, fingerprint="f" * 32, training={"shots": 16, "seed": 1},
    )  # fmt: skip
    return LearnedPrompt(**(fields | changes))


def some_head(bias=True, keys=5, classes=3, width=4, seed=0, **changes):
    random = torch.Generator().manual_seed(seed)
    fields = dict(
        method="linear-probe", weights=torch.randn(classes, width, generator=random),
        class_names=tuple(f"class ☆{k}" for k in range(classes)), folders=tuple(f"c{k}" for k in range(classes)),
        model="mini", revision=None, fingerprint="f" * 32, training={"parameters": 3},
        bias=torch.randn(classes, generator=random) if bias else None,
    )  # fmt: skip
    if keys:
        fields |= dict(
            keys=F.normalize(torch.randn(keys, width, generator=random), dim=-1),
            values=torch.randint(classes, (keys,), generator=random), alpha=1.5, beta=5.5,
        )  # fmt: skip
    return Head(**(fields | changes))
