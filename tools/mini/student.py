"""The student: a lean CLIP for training on CPUs, and its way into transformers' CLIPModel.

It computes what CLIPModel computes, with the three projections of attention in one product, and its image tower can leave
out part of the patches, which halves the time of a step and costs little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from mini.tower import resized_positions


@dataclass(frozen=True)
class Sizes:
    """The widths and depths of both towers."""

    image_side: int = 64
    patch: int = 8
    image_width: int = 192
    image_layers: int = 7
    image_heads: int = 6
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 6
    positions: int = 77
    joint: int = 512


class Block(nn.Module):
    """One transformer layer, normalised first, as in CLIP."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=width**-0.5 * (1.0 if layer in (self.qkv, self.fc1) else (2 * depth) ** -0.5))
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # the CPU's fused attention has a slow backward
        if causal:
            scores = scores + torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
        mixed = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ImageTower(nn.Module):
    """Patches to a feature; `keep` says which patches of each picture are looked at."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.patch, self.grid = s.patch, s.image_side // s.patch
        self.embed = nn.Linear(3 * s.patch**2, s.image_width, bias=False)
        self.cls = nn.Parameter(torch.randn(s.image_width) * 0.02)
        self.positions = nn.Parameter(torch.randn(self.grid**2 + 1, s.image_width) * 0.02)
        self.norm_in, self.norm_out = nn.LayerNorm(s.image_width), nn.LayerNorm(s.image_width)
        self.blocks = nn.ModuleList(Block(s.image_width, s.image_heads, s.image_layers) for _ in range(s.image_layers))
        self.project = nn.Linear(s.image_width, s.joint, bias=False)

    def patches(self, pictures: torch.Tensor) -> torch.Tensor:
        """Cut pictures [n, channels, side, side] into [n, patches, channels * patch * patch]."""
        n, channels, side, _ = pictures.shape
        cut = pictures.reshape(n, channels, side // self.patch, self.patch, side // self.patch, self.patch)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, self.grid**2, -1)

    def forward(self, patches: torch.Tensor, keep: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [n, joint], and the patches' last states. `patches` are those of `keep`, if that is given."""
        places = self.positions[1:][keep] if keep is not None else self.positions[1:]
        x = self.embed(patches) + places
        first = (self.cls + self.positions[0]).expand(len(x), 1, -1)
        x = self.norm_in(torch.cat([first.to(x.dtype), x], 1))
        for block in self.blocks:
            x = block(x, causal=False)
        return self.project(self.norm_out(x[:, 0])), x[:, 1:]


class TextTower(nn.Module):
    """Tokens to a feature, read at the end-of-text token."""

    def __init__(self, s: Sizes, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, s.text_width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(s.positions, s.text_width) * 0.01)
        self.norm_out = nn.LayerNorm(s.text_width)
        self.blocks = nn.ModuleList(Block(s.text_width, s.text_heads, s.text_layers) for _ in range(s.text_layers))
        self.project = nn.Linear(s.text_width, s.joint, bias=False)

    def forward(self, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        return self.project(self.norm_out(x[torch.arange(len(x)), ends]))


class Student(nn.Module):
    """Both towers and the scale of their cosines."""

    def __init__(self, sizes: Sizes, vocabulary: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.image, self.text = ImageTower(sizes), TextTower(sizes, vocabulary)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(14.0)))


def build_config(s: Sizes, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The configuration of the CLIPModel that the student becomes."""
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return CLIPConfig(
        projection_dim=s.joint,
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=s.text_width, intermediate_size=4 * s.text_width,
            num_hidden_layers=s.text_layers, num_attention_heads=s.text_heads, max_position_embeddings=s.positions,
            hidden_act="gelu", projection_dim=s.joint, **ends,
        ),
        vision_config=dict(
            hidden_size=s.image_width, intermediate_size=4 * s.image_width, num_hidden_layers=s.image_layers,
            num_attention_heads=s.image_heads, image_size=s.image_side, patch_size=s.patch, hidden_act="gelu",
            projection_dim=s.joint,
        ),
    )  # fmt: skip


PLACES = {"norm1": "layer_norm1", "norm2": "layer_norm2", "out": "self_attn.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
TOP = {
    "image.cls": "vision_model.embeddings.class_embedding",
    "image.embed.weight": "vision_model.embeddings.patch_embedding.weight",  # seen as [width, 3 * patch * patch]
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "text.tokens.weight": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "image.project.weight": "visual_projection.weight",
    "text.project.weight": "text_projection.weight",
    **{
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in (
            ("image.norm_in", "vision_model.pre_layrnorm"),
            ("image.norm_out", "vision_model.post_layernorm"),
            ("text.norm_out", "text_model.final_layer_norm"),
        )
        for kind in ("weight", "bias")
    },
}


def to_clip(student: Student, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Copy the student into transformers' CLIPModel."""
    s, own = student.sizes, student.state_dict()
    weights = {"logit_scale": own["logit_scale"]}
    for tower, there in (("image", "vision_model"), ("text", "text_model")):
        for name, value in own.items():
            part = name.removeprefix(f"{tower}.blocks.")
            if part == name:
                continue
            number, layer, kind = part.split(".")
            stem = f"{there}.encoder.layers.{number}"
            if layer == "qkv":
                for which, piece in zip("qkv", value.chunk(3), strict=True):
                    weights[f"{stem}.self_attn.{which}_proj.{kind}"] = piece
            else:
                weights[f"{stem}.{PLACES[layer]}.{kind}"] = value
    weights |= {place: own[name] for name, place in TOP.items()}
    weights[TOP["image.embed.weight"]] = own["image.embed.weight"].view(-1, 3, s.patch, s.patch)
    model = CLIPModel(build_config(s, tokenizer))
    missing = model.load_state_dict({name: value.contiguous().clone() for name, value in weights.items()}, strict=False)
    lost = [name for name in missing.missing_keys if not name.endswith("position_ids")]
    if lost or missing.unexpected_keys:
        raise RuntimeError(f"the student does not fill CLIPModel: {lost} {missing.unexpected_keys}")
    return model.eval()


def for_patches(weight: torch.Tensor, patch: int) -> torch.Tensor:
    """Make weights [width, 3, old, old] of patches of another size [width, 3 * patch * patch].

    They say of a resized patch what they said of the patch (FlexiViT, Beyer et al., CVPR 2023, section 3.4).
    """
    old = weight.shape[-1]
    basis = torch.eye(old * old).view(-1, 1, old, old)
    resize = F.interpolate(basis, size=(patch, patch), mode="bicubic", align_corners=False).flatten(1)
    return (weight.flatten(2) @ torch.linalg.pinv(resize).T).flatten(1)


def weights_of(model: CLIPModel, tower: str, student: Student, numbers: list[int]) -> dict[str, torch.Tensor]:
    """A model's weights of one tower under the student's names, its layers at `numbers`, patches brought to the student's size.

    The inverse of what `to_clip` does.
    """
    theirs, own = model.state_dict(), {}
    stem = {"image": "vision_model", "text": "text_model"}[tower]
    for layer, number in enumerate(numbers):
        there = f"{stem}.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [theirs[f"{there}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            own[f"{tower}.blocks.{number}.qkv.{kind}"] = torch.cat(parts)
            for name, place in PLACES.items():
                own[f"{tower}.blocks.{number}.{name}.{kind}"] = theirs[f"{there}.{place}.{kind}"]
    own |= {name: theirs[place] for name, place in TOP.items() if name.startswith(tower)}
    if tower == "image":
        own["image.embed.weight"] = for_patches(own["image.embed.weight"], student.image.patch)
        own["image.positions"] = resized_positions(own["image.positions"], student.image.grid)
    return own


def start_from(student: Student, first: CLIPModel, added: tuple[int, ...]) -> None:
    """Let the student's image tower begin as that of an earlier model of the same width, which knows the drawings.

    `added` are the places of layers that the earlier tower lacks: they begin by doing nothing. Its projection is not taken.
    """
    kept = [number for number in range(student.sizes.image_layers) if number not in added]
    own = weights_of(first, "image", student, kept)
    del own["image.project.weight"]
    student.load_state_dict(student.state_dict() | own)
    with torch.no_grad():
        for number in added:
            student.image.blocks[number].out.weight.zero_()
            student.image.blocks[number].fc2.weight.zero_()


def go_on_from(student: Student, model: CLIPModel) -> None:
    """Let the student begin as a model that `to_clip` made of one like it, or of one with patches of another size."""
    s = student.sizes
    image = weights_of(model, "image", student, list(range(s.image_layers)))
    text = weights_of(model, "text", student, list(range(s.text_layers)))
    student.load_state_dict({"logit_scale": model.logit_scale.detach(), **image, **text})
