"""An image tower as its weight file holds it: enough to encode images, without transformers' classes.

Importing these takes seconds, and building a model its text tower, too. The first load of a model still takes that way, and
checks everything; what it found out, kept in the cache, is what this module relies on.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .hf_clip import SAFETENSORS
from .layers import KERNELS

READ_HERE = ("clip", "metaclip_2", "chinese_clip")  # a class token, a projection, and files with the names of stock modules
EMBEDDINGS = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
IN_A_LAYER = (
    "layer_norm1", "layer_norm2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1",
    "mlp.fc2",
)  # fmt: skip
SETTINGS = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")


def tower_settings(model: Any) -> dict[str, Any] | None:
    """Get what the weight file of a stock model does not say of its image tower; None for a tower that is not read there."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") not in READ_HERE or config.vision_config.hidden_act not in KERNELS:
        return None
    if getattr(config, "transformers_weights", None):  # the name of another file
        return None
    return {"model_type": config.model_type, **{name: getattr(config.vision_config, name) for name in SETTINGS}}


def read_tower_weights(folder: Path, settings: dict[str, Any] | None, dtype: torch.dtype) -> Any:
    """Read the image tower's weights, in `dtype`, as attributes with the names that a stock model gives them.

    None without settings, and where the folder holds no single file with weights of those names.
    """
    from safetensors import safe_open

    if settings is None or not (folder / SAFETENSORS).is_file():
        return None
    names = _names(settings["num_hidden_layers"])
    model = SimpleNamespace(config=SimpleNamespace(model_type=settings["model_type"]))
    with safe_open(folder / SAFETENSORS, "pt") as file:
        if not set(names) <= set(file.keys()):
            return None
        for name in names:
            *path, last = name.split(".")
            part = model
            for step in path:
                part = vars(part).setdefault(step, SimpleNamespace(bias=None, eps=settings["layer_norm_eps"]))
            setattr(part, last, file.get_tensor(name).float().to(dtype, copy=True))  # no view of a file that may change
    layers = vars(model.vision_model.encoder.layers)
    model.vision_model.encoder.layers = [layers[str(number)] for number in range(settings["num_hidden_layers"])]
    model.vision_model.config = SimpleNamespace(**settings)
    return model


def _names(layers: int) -> list[str]:
    modules = ["pre_layrnorm", "post_layernorm", *(f"encoder.layers.{i}.{part}" for i in range(layers) for part in IN_A_LAYER)]
    tower = [
        *(f"embeddings.{name}" for name in EMBEDDINGS),
        *(f"{part}.{kind}" for part in modules for kind in ("weight", "bias")),
    ]
    return [*(f"vision_model.{name}" for name in tower), "visual_projection.weight"]
