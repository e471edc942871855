"""Change whole batches of pictures at once: crops and flips, and what captions can tell (dark, blurry, from far)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mini.captions import EFFECTS

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def cropped(x: torch.Tensor, scale: np.ndarray, flip: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Look at a window of each picture, `scale` of its side wide, at a random place; above 1 the picture shrinks."""
    n, _, side, _ = x.shape
    room = np.abs(1 - scale)
    shift = rng.uniform(-1, 1, (2, n)) * room
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.from_numpy(np.where(flip, -scale, scale))
    theta[:, 1, 1] = torch.from_numpy(scale)
    theta[:, :, 2] = torch.from_numpy(shift.T)
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def seen(pictures: np.ndarray, effects: np.ndarray, side: int, rng: np.random.Generator, least: float = 0.55) -> torch.Tensor:
    """uint8 [n, any, any, channels] to changed floats 0..1 [n, channels, side, side]; `effects` index `EFFECTS`."""
    n = len(pictures)
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    scale = np.where(rng.random(n) < 0.35, 1.0, np.sqrt(rng.uniform(least**2, 1.0, n)))
    scale = np.where(effects == EFFECTS.index("close"), rng.uniform(0.35, 0.5, n), scale)
    scale = np.where(effects == EFFECTS.index("far"), rng.uniform(1.6, 2.2, n), scale)
    x = cropped(x, scale, rng.random(n) < 0.5, rng)
    x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

    def factor(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, n)).float().view(-1, 1, 1, 1)

    def having(name: str) -> torch.Tensor:
        return torch.from_numpy(effects == EFFECTS.index(name)).view(-1, 1, 1, 1)

    x = torch.where(having("dark"), x * factor(0.25, 0.5), x)
    x = torch.where(having("bright"), 1 - (1 - x) * factor(0.35, 0.6), x)
    if (effects == EFFECTS.index("grey")).any():
        x = torch.where(having("grey"), x[:, :3].mean(1, keepdim=True), x)
    blurry = torch.from_numpy(np.flatnonzero(effects == EFFECTS.index("blurry")))
    if len(blurry):
        small = F.interpolate(x[blurry], scale_factor=1 / float(rng.uniform(2.5, 4)), mode="area")
        x[blurry] = F.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return x


def jittered(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change light and contrast a little, each picture by itself."""
    light = torch.from_numpy(rng.uniform(0.85, 1.15, (2, len(x)))).float().view(2, -1, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (((x - mean) * light[0] + mean) * light[1]).clamp(0, 1)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Bring colours to the model's scale."""
    return (x - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
