"""Stock CLIPModels from folders as people publish them, and folders that are damaged or of another kind."""

import json

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from conftest import folder_of, tiny_clip
from PIL import Image
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from coopcli.clip.backbone import load_backbone
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.pixels import centre
from coopcli.errors import CoopError

OPENAI = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}


def test_a_model_that_cannot_be_had_names_the_way_out():
    with pytest.raises(CoopError) as error:
        load_backbone("openai/clip-vit-base-patch16")
    assert "--model mini" in str(error.value) and "FOLDER" in str(error.value)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_an_incomplete_folder_says_so(copy_of_mini, missing):
    (copy_of_mini / missing).unlink()
    with pytest.raises(CoopError, match="is not a complete CLIPModel"):
        load_backbone(str(copy_of_mini))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CoopError, match="is a bert model"):
        load_backbone(str(tmp_path))


OLD_OPENAI = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)  # 2 stands for "the largest number"


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("ends", [{}, OLD_OPENAI])
def test_configurations_of_openai_laion_and_dfn(tmp_path, tokenizer, activation, ends):
    folder = folder_of(tiny_clip(tokenizer, activation), tmp_path, tokenizer, **ends)
    stock, clip = CLIPModel.from_pretrained(folder).eval(), load_backbone(folder, device="cpu")
    names = ["star", "annual_crop", "kite (bird of prey)"]
    with torch.no_grad():
        expected = oracle.template_features(stock, tokenizer, "a photo of a {}.", names)
        assert (hand_written_features(clip, ["a photo of a {}."], names) - expected).abs().max() < 1e-5
        pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
        expected = oracle.image_features(stock, pixels)
    assert (clip.encode_images(pixels) - expected).abs().max() < 1e-5
    assert clip.feature_width == 24 and clip.text_encoder.width == 64


HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("processor", "resized"),
    [
        ({"size": 32, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3}, (48, 32)),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": True}, (48, 32)),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_convert_rgb": False} | HALVES, (60, 40)),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False} | HALVES, (32, 32)),
    ],
)
def test_preprocessors_of_many_kinds(tmp_path, tokenizer, processor, resized):
    folder = folder_of(tiny_clip(tokenizer), tmp_path, tokenizer, processor)
    clip = load_backbone(folder, device="cpu")
    assert clip.image_size == 32
    picture = Image.effect_noise((90, 60), 90).convert("RGB")
    left, top = (resized[0] - 32) // 2, (resized[1] - 32) // 2
    seen = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))[top : top + 32, left : left + 32].transpose(2, 0, 1)
    pixels = centre(clip.preprocessing, picture)
    assert (pixels == seen).all()
    mean, std = (np.array((OPENAI | processor)[key]) for key in OPENAI)
    inputs = (torch.tensor(seen.transpose(1, 2, 0) / 255 - mean) / std).permute(2, 0, 1).float()
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=inputs[None]).pooler_output
    expected = F.normalize(expected, dim=-1)
    assert (clip.encode_images(torch.tensor(pixels)[None]) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("processor", [{"size": 48, "crop_size": 48}, {"size": 32, "do_center_crop": False}])
def test_a_preprocessor_for_another_tower_is_told(tmp_path, tokenizer, processor):
    folder = folder_of(tiny_clip(tokenizer), tmp_path, tokenizer, processor)
    with pytest.raises(CoopError, match=r"takes images of 32 x 32 pixels and its preprocessor makes \d+ x \d+") as error:
        load_backbone(folder)
    assert folder in str(error.value)


def test_another_activation_is_another_model(tmp_path, tokenizer):
    model = tiny_clip(tokenizer)
    plain = folder_of(model, tmp_path / "a", tokenizer)
    other = folder_of(model, tmp_path / "b", tokenizer, hidden_act="gelu")
    assert load_backbone(plain).fingerprint != load_backbone(other).fingerprint


@pytest.fixture
def pickled(tmp_path, tokenizer):
    """A model folder whose weights are a pickle."""
    model, folder = tiny_clip(tokenizer), tmp_path / "pickled"
    folder_of(model, folder, tokenizer)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_only_when_allowed(pickled, tokenizer, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a pickle was opened")

    with monkeypatch.context() as patch:
        patch.setattr("torch.load", opened)
        with pytest.raises(CoopError, match="--allow-pickle-weights") as error:
            load_backbone(str(pickled))
    assert str(pickled) in str(error.value) and "\n" not in str(error.value)
    loaded = load_backbone(str(pickled), allow_pickle=True)
    assert torch.equal(loaded.model.logit_scale, tiny_clip(tokenizer).logit_scale) and loaded.feature_width == 24


def test_a_safetensors_index_does_not_let_pickles_in(pickled):
    names = torch.load(pickled / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")}
    (pickled / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CoopError, match="--allow-pickle-weights"):
        load_backbone(str(pickled))


def test_pickled_weights_on_the_hub_name_the_option(monkeypatch, mini):
    def nothing(*_, **__):
        raise OSError("no safetensors")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: mini.model.config)
    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", nothing)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda _, name, **__: name == "pytorch_model.bin")
    with pytest.raises(CoopError, match="--allow-pickle-weights"):
        load_backbone("someone/clip")


def test_code_beside_a_model_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CoopError, match="is not a complete CLIPModel"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff" * 99])
def test_a_damaged_folder_is_one_line(copy_of_mini, file, content):
    (copy_of_mini / file).write_bytes(content)
    try:
        load_backbone(str(copy_of_mini))  # transformers makes do with the tokenizer's other files, where they are
    except CoopError as error:
        assert str(copy_of_mini) in str(error) and "\n" not in str(error)
