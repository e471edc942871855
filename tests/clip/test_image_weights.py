"""A known model's image tower comes from its weight file: the same bytes, and nothing else of the model is loaded."""

import json

import pytest
import torch
from conftest import folder_of, tiny_clip
from families import folder_of_family
from safetensors.torch import load_file, save_file

from coopcli.clip import known
from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.frozen_linear import FrozenLinear

packs = FrozenLinear(torch.ones(8, 8), None).packed
pytestmark = [
    pytest.mark.skipif(not packs, reason="oneDNN has no kernels for this CPU: the stock tower runs"),
    pytest.mark.same_bytes,
]


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(known, "SETTLED", 0)


def encoded(folder, dtype="float32"):
    """Features by the loaded model, and by the known one, and whether the latter was loaded for them."""
    cache = FeatureCache(None)
    first, second = (load_backbone(str(folder), device="cpu", dtype=dtype, cache=cache) for _ in range(2))
    assert first.loaded and not second.loaded
    shape = (3, 3, first.image_size, first.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return first.encode_images(pixels), second.encode_images(pixels), second.loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mini_without_its_model(copy_of_mini, dtype):
    stock, ours, loaded = encoded(copy_of_mini, dtype)
    kernels = FrozenLinear(torch.ones(8, 8, dtype=getattr(torch, dtype)), None).packed  # not of bfloat16 on every CPU
    assert torch.equal(ours, stock) and loaded == (not kernels)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_activations(tmp_path, tokenizer, activation):
    stock, ours, loaded = encoded(folder_of(tiny_clip(tokenizer, activation), tmp_path, tokenizer))
    assert torch.equal(ours, stock) and loaded == (activation == "relu")


@pytest.mark.parametrize("family", ["metaclip_2", "chinese_clip", "altclip", "siglip", "align"])
def test_families(tmp_path, family):
    stock, ours, loaded = encoded(folder_of_family(family, tmp_path))
    assert torch.equal(ours, stock) and loaded == (family in ("altclip", "siglip", "align"))


def in_two_files(folder, weights):
    halves = dict(sorted(weights.items())[::2]), dict(sorted(weights.items())[1::2])
    for number, half in enumerate(halves):
        save_file(half, folder / f"part-{number}.safetensors", {"format": "pt"})
    places = {name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()


def in_float32_with_one_weight_more(folder, weights):
    more = {"vision_model.embeddings.position_ids": torch.arange(37)[None]}
    save_file({name: weight.float() for name, weight in weights.items()} | more, folder / "model.safetensors", {"format": "pt"})


def in_a_file_that_the_config_names(folder, weights):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    decoy = {name: weight + 1 for name, weight in weights.items()}
    save_file(decoy, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


@pytest.mark.parametrize(
    ("write", "whole"),
    [(in_two_files, True), (in_a_file_that_the_config_names, True), (in_float32_with_one_weight_more, False)],
)
def test_files_of_other_kinds(copy_of_mini, write, whole):
    write(copy_of_mini, load_file(copy_of_mini / "model.safetensors"))
    stock, ours, loaded = encoded(copy_of_mini)
    assert torch.equal(ours, stock) and loaded == whole
