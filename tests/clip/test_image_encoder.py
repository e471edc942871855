"""The image tower on packed weights: the stock tower's features, whatever the family, the activation and the batch."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_clip
from families import tiny

from coopcli.clip import image_encoder
from coopcli.clip.backbone import load_backbone
from coopcli.clip.frozen_linear import FrozenLinear
from coopcli.clip.image_encoder import read_image_encoder

packs = FrozenLinear(torch.ones(8, 8), None).packed
pytestmark = pytest.mark.skipif(not packs, reason="oneDNN has no kernels for this CPU: the stock tower runs")


def stock(model, inputs):
    with torch.no_grad():
        return model.get_image_features(pixel_values=inputs).pooler_output


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_features_are_the_stock_models(tokenizer, activation):
    model = tiny_clip(tokenizer, activation)
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = read_image_encoder(model)(inputs)
    assert (F.normalize(ours, dim=-1) - F.normalize(stock(model, inputs), dim=-1)).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["metaclip_2", "siglip", "chinese_clip", "altclip"])
def test_every_family_with_such_a_tower(family):
    model = tiny(family)[0]
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = read_image_encoder(model)(inputs)
    assert (F.normalize(ours, dim=-1) - F.normalize(stock(model, inputs), dim=-1)).abs().max() < 1e-5


def test_pixels_beyond_the_last_whole_patch_are_left_out_as_in_the_stock_tower(tokenizer):
    from transformers import CLIPConfig, CLIPModel

    config = tiny_clip(tokenizer).config.to_dict()
    config["vision_config"] |= {"image_size": 37}
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(**config)).eval().requires_grad_(False)
    inputs = torch.randn(2, 3, 37, 37)
    with torch.inference_mode():
        ours = read_image_encoder(model)(inputs)
    assert (F.normalize(ours, dim=-1) - F.normalize(stock(model, inputs), dim=-1)).abs().max() < 1e-5


def test_other_towers_run_stock():
    assert read_image_encoder(tiny("align")[0]) is None
    assert read_image_encoder(torch.nn.Linear(2, 2)) is None
    model = tiny("siglip")[0]
    model.vision_model.use_head = False
    assert read_image_encoder(model) is None


def test_with_gradients_and_without_kernels_the_stock_tower_runs(mini, monkeypatch):
    pixels = torch.randint(0, 255, (8, 3, mini.image_size, mini.image_size), dtype=torch.uint8)
    packed = mini.encode_images(pixels)
    with torch.no_grad():
        assert torch.equal(mini.image_tower(pixels), mini.image_tower(pixels)) and "image_encoder" in vars(mini)
        plain = mini.image_tower(pixels)
    assert 0 < (packed - plain).abs().max() < 1e-5, "the packed tower did not run"
    monkeypatch.setattr("coopcli.clip.frozen_linear._packed", lambda weight: weight)
    clip = load_backbone("mini", device="cpu")
    assert clip.image_encoder is None and torch.equal(clip.encode_images(pixels), plain)


def test_bfloat16_is_nearer_to_float32_than_the_stock_towers_is(mini):
    clip = load_backbone("mini", device="cpu", dtype="bfloat16")
    pixels = torch.randint(0, 255, (8, 3, mini.image_size, mini.image_size), dtype=torch.uint8)
    exact = mini.encode_images(pixels)
    with torch.no_grad():
        stock_error = (clip.image_tower(pixels) - exact).norm()
    assert (clip.encode_images(pixels) - exact).norm() <= stock_error


def test_the_cache_tells_features_of_another_encoding(mini, photos, tmp_path, monkeypatch):
    from coopcli.clip import image_features
    from coopcli.clip.cache import FeatureCache
    from coopcli.data.load import load_data

    items, cache = load_data(str(photos)).splits["all"][:2], FeatureCache(None)
    image_features.image_features(mini, items, cache)
    before = cache.size()[0]
    image_features.image_features(mini, items, cache)
    assert cache.size()[0] == before
    monkeypatch.setattr(image_features, "ENCODING", image_encoder.ENCODING + b"x")
    image_features.image_features(mini, items, cache)
    assert cache.size()[0] == 2 * before
