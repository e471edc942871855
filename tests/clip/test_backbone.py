import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from coopcli.clip.backbone import Backbone, fingerprint_of, load_backbone
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.errors import UsageError
from coopcli.machine import pick_device


def test_mini_is_a_stock_clip_of_at_most_12_mb(mini):
    assert type(mini.model).__name__ == "CLIPModel"
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < 12e6
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert mini.text_encoder.max_length == 77


def test_the_fingerprint_of_a_clip_stays_what_it_was(mini):
    """Saved prompts name it: a change would part them from their model."""
    assert mini.fingerprint == "c77b2289f7791adaad26c48193d37c6a"


def test_same_weights_elsewhere_have_the_same_fingerprint(mini, copy_of_mini):
    assert load_backbone(str(copy_of_mini)).fingerprint == mini.fingerprint


def test_other_weights_or_preprocessing_have_another(mini, copy_of_mini):
    settings = json.loads((copy_of_mini / "preprocessor_config.json").read_text())
    (copy_of_mini / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    other_preprocessing = load_backbone(str(copy_of_mini)).fingerprint
    weights = load_file(copy_of_mini / "model.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, copy_of_mini / "model.safetensors", metadata={"format": "pt"})
    other_weights = load_backbone(str(copy_of_mini)).fingerprint
    assert len({mini.fingerprint, other_preprocessing, other_weights}) == 3


def test_fingerprint_does_not_depend_on_dtype_or_run(mini):
    assert load_backbone("mini", dtype="bfloat16").fingerprint == mini.fingerprint
    assert fingerprint_of(mini.model, mini.tokenizer, mini.image_processor) == mini.fingerprint


def test_encoding_is_normalised_float32(mini):
    pixels = torch.randint(256, (2, 3, *[mini.image_size] * 2), dtype=torch.uint8)
    assert mini.encode_images(pixels).norm(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    rough = load_backbone("mini", dtype="bfloat16").encode_images(pixels)
    assert rough.dtype == torch.float32
    assert (rough - mini.encode_images(pixels)).abs().max() < 0.05


def test_a_text_tower_first_needed_in_inference_can_be_trained_through():
    rough = load_backbone("mini", device="cpu", dtype="bfloat16")
    with torch.inference_mode():
        encoder = rough.text_encoder
    context = torch.zeros(2, encoder.width, requires_grad=True)
    encoder.encode([(5, -1, -2, 7)], context)[0, 0].backward()
    assert context.grad.abs().sum() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        pick_device("cuda")


def test_the_logit_scale_is_not_rounded(mini):
    exact = float(mini.model.logit_scale.double().exp())
    assert mini.logit_scale == pytest.approx(exact, rel=1e-6)
    assert load_backbone("mini", dtype="bfloat16").logit_scale == mini.logit_scale


@pytest.mark.same_bytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pictures_are_encoded_in_batches_of_one_size(dtype, monkeypatch):
    clip = load_backbone("mini", device="cpu", dtype=dtype)
    sizes, tower = [], Backbone.image_tower
    monkeypatch.setattr(Backbone, "image_tower", lambda self, pixels: (sizes.append(len(pixels)), tower(self, pixels))[1])
    pixels = torch.randint(0, 256, (21, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    together = clip.encode_images(pixels)
    assert torch.equal(together, torch.cat([clip.encode_images(part) for part in pixels.split([1, 7, 13])]))
    assert set(sizes) == {8} and together.shape == (21, clip.feature_width)
