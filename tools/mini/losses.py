"""What the student is told: losses between pictures, captions and the teacher, and heads that name drawn attributes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from coopcli.demo.drawing import ATTRIBUTES


def contrastive(scores: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, both ways, for [images, captions] of which several may match: the probability is shared among them.

    Pictures and captions that nothing matches are left out.
    """
    match = match.float()
    rows, columns = match.sum(1), match.sum(0)
    by_image = F.cross_entropy(scores[rows > 0], (match / rows.clamp(min=1)[:, None])[rows > 0])
    by_caption = F.cross_entropy(scores.T[columns > 0], (match / columns.clamp(min=1)).T[columns > 0])
    return (by_image + by_caption) / 2


def towards(own: torch.Tensor, teacher: torch.Tensor, sharpness: float = 12.0) -> torch.Tensor:
    """Bring unit features to the teacher's: by their cosine, and by how alike each is to all of the batch."""
    near = 2 * (1 - (own * teacher).sum(-1)).mean()
    wanted = (sharpness * teacher @ teacher.T).softmax(-1)
    return near + F.cross_entropy(sharpness * own @ teacher.T, wanted)


class Heads(nn.Module):
    """Name a scene's attributes from the image feature, and from every patch; say which patches the object covers.

    The labels cost nothing, as the pictures are drawn, and a small tower learns far faster from them than from captions
    alone. The heads are thrown away after training.
    """

    OF_OBJECT = ("shape", "colour", "texture", "mark_colour", "size")  # asked of the object's patches only

    def __init__(self, feature_width: int, patch_width: int) -> None:
        super().__init__()
        self.sizes = [len(values) for values in ATTRIBUTES.values()]
        self.whole = nn.Linear(feature_width, sum(self.sizes))
        self.patches = nn.Linear(patch_width, sum(self.sizes) + 1)

    def forward(self, image: torch.Tensor, patches: torch.Tensor, coverage: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        whole = self.whole(image).float().split(self.sizes, dim=-1)
        *dense, covered = self.patches(patches).float().split([*self.sizes, 1], dim=-1)
        loss = 2 * F.binary_cross_entropy_with_logits(covered[..., 0], coverage)
        for i, name in enumerate(ATTRIBUTES):
            loss = loss + F.cross_entropy(whole[i], ids[:, i])
            asked = coverage > 0.5 if name in self.OF_OBJECT else torch.ones_like(coverage, dtype=torch.bool)
            loss = loss + F.cross_entropy(dense[i][asked], ids[:, None, i].expand_as(coverage)[asked])
        return loss
