"""Tiny random models of the families beyond CLIP, with tokenizers of their kinds, as folders that people could publish."""

from __future__ import annotations

import json

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCABULARY = (
    "a photo of itap the my star red shape small blue on background kite bird prey annual crop xylophone green q "
    "cat ring heart moon sun very long name in many parts ( ) ."
)
WORDS = VOCABULARY.split()
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
WIDTH, LAYERS, SIDE = 48, 3, 32
SIZES = dict(hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP_PIXELS = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
SQUASH = {"size": {"height": SIDE, "width": SIDE}, "resample": 2, **HALVES}


def bert_tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokens += [*dict.fromkeys(word for word in WORDS if word not in tokens), "星", "心"]
    return transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def roberta_tokenizer():
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces += [(letter, -8.0) for letter in [*LETTERS, ".", "(", ")"]] + [(f"▁{word}", -4.0) for word in WORDS]
    return transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])


def gemma_tokenizer():
    """As SigLIP 2's: no token at the beginning, " cat" and "cat" are different tokens, lower case only by training."""
    pieces = ["<pad>", "<eos>", "<unk>", "▁", *LETTERS, *"ABC", ".", "(", ")"]
    merges = []
    for word in WORDS:
        for start in (word, f"▁{word}"):
            for end in range(2, len(start) + 1):
                if start[:end] not in pieces:
                    merges.append((start[: end - 1], start[end - 1]))
                    pieces.append(start[:end])
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def metaclip_2():
    tokenizer = roberta_tokenizer()
    text = SIZES | dict(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, pad_token_id=1, projection_dim=24, hidden_act="quick_gelu"
    )
    config = transformers.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.MetaClip2Model(config), tokenizer, CLIP_PIXELS


def siglip(positions=40):
    tokenizer = gemma_tokenizer()
    text = SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=positions, projection_size=32)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
    return model, tokenizer, SQUASH


def chinese_clip():
    tokenizer = bert_tokenizer()
    text = SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=64)
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.ChineseCLIPModel(config), tokenizer, SQUASH | {"do_center_crop": False}


def altclip():
    tokenizer = roberta_tokenizer()
    text = SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=66, project_dim=40, pad_token_id=1)
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.AltCLIPModel(config), tokenizer, CLIP_PIXELS


def align():
    tokenizer = bert_tokenizer()
    text = SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=64)
    vision = dict(
        image_size=64, width_coefficient=0.2, depth_coefficient=0.1, hidden_dim=24, in_channels=[32, 16], out_channels=[16, 24],
        strides=[1, 2], num_block_repeats=[1, 1], expand_ratios=[1, 6], kernel_sizes=[3, 3], depthwise_padding=[],
    )  # fmt: skip
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=8, temperature_init_value=0.05)
    pixels = dict(
        size={"height": 40, "width": 40}, do_center_crop=True, crop_size={"height": SIDE, "width": SIDE}, resample=2,
        rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False,
    )  # fmt: skip
    return transformers.AlignModel(config), tokenizer, pixels


FAMILIES = {make.__name__: make for make in (metaclip_2, siglip, chinese_clip, altclip, align)}


def tiny(family):
    """A model with all weights moved off their starts (norms off 1, biases off 0), its tokenizer and preprocessing."""
    torch.manual_seed(0)
    model, tokenizer, pixels = FAMILIES[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name not in ("temperature", "logit_scale", "logit_bias"):
                weight.add_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else 0.08))
        if hasattr(model, "logit_scale"):
            model.logit_scale.fill_(3.0)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-1.5)
    return model.eval().requires_grad_(False), tokenizer, pixels


def folder_of_family(family, folder):
    model, tokenizer, pixels = tiny(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return str(folder)
