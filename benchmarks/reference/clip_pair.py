"""One small random CLIP in two formats: OpenAI's state dict for the reference, a CLIPModel folder for coop."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from coopcli.clip.tokens import byte_letters

SIDE = 32  # pixels
N_MERGES = 48894  # of OpenAI's table that its tokenizer uses
# The reference takes one head for 64 numbers and an MLP of four times the width.
TEXT = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2)
VISION = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)


def openai_tokenizer(table: Path) -> CLIPTokenizer:
    """OpenAI's tokenizer from its table of merges, which the reference carries."""
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + N_MERGES]]
    letters = list(byte_letters().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def write_pair(folder: Path, table: Path) -> tuple[Path, Path]:
    """Write the model twice; returns the CLIPModel folder and the state dict's file.

    The weights are numbers of float16, into which the reference rounds all it loads.
    """
    tokenizer = openai_tokenizer(table)
    torch.manual_seed(0)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Larger weights than a fresh model's: small ones make all prompts alike and hide mistakes.
    config = CLIPConfig(
        text_config=dict(vocab_size=len(tokenizer), **TEXT, **ends),
        vision_config=VISION,
        projection_dim=64,
        logit_scale_init_value=4.6052,
        initializer_factor=4.0,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    model_folder, state = folder / "clip", folder / "clip.pt"
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(model_folder)
    torch.save(openai_state(model), state)
    return model_folder, state


def openai_state(model: CLIPModel) -> dict[str, Tensor]:
    """The weights under OpenAI's names."""
    vision, text = model.vision_model, model.text_model
    state = {
        "logit_scale": model.logit_scale,
        "text_projection": model.text_projection.weight.T,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
    }
    norms = {"ln_final": text.final_layer_norm, "visual.ln_pre": vision.pre_layrnorm, "visual.ln_post": vision.post_layernorm}
    for name, norm in norms.items():
        state |= {f"{name}.{kind}": value for kind, value in norm.named_parameters()}
    for prefix, tower in (("transformer", text.encoder), ("visual.transformer", vision.encoder)):
        for number, layer in enumerate(tower.layers):
            attention = layer.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            name = f"{prefix}.resblocks.{number}"
            state[f"{name}.attn.in_proj_weight"] = torch.cat([part.weight for part in projections])
            state[f"{name}.attn.in_proj_bias"] = torch.cat([part.bias for part in projections])
            modules = {
                "attn.out_proj": attention.out_proj, "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2,
                "mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2,
            }  # fmt: skip
            for part, module in modules.items():
                state |= {f"{name}.{part}.{kind}": value for kind, value in module.named_parameters()}
    return {name: value.detach().clone() for name, value in state.items()}
