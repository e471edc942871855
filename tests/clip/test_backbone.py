import json
import shutil

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from coopcli.clip.backbone import Backbone, fingerprint_of, load_backbone
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.clip.pixels import centre
from coopcli.errors import CoopError, UsageError
from coopcli.machine import pick_device

OPENAI = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}


@pytest.fixture
def copy_of_mini(tmp_path):
    return shutil.copytree(MINI_FOLDER, tmp_path / "copy")


def test_mini_is_a_stock_clip_of_at_most_8_mb(mini):
    assert type(mini.model).__name__ == "CLIPModel"
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < 8e6
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert mini.text_encoder.max_length == 77


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
    pixels = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
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


def test_a_model_that_cannot_be_had_names_the_way_out():
    with pytest.raises(CoopError) as error:
        load_backbone("openai/clip-vit-base-patch16")
    assert "--model mini" in str(error.value) and "FOLDER" in str(error.value)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_an_incomplete_folder_says_so(copy_of_mini, missing):
    (copy_of_mini / missing).unlink()
    with pytest.raises(CoopError, match="holds no complete CLIPModel"):
        load_backbone(str(copy_of_mini))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CoopError, match="is a bert model"):
        load_backbone(str(tmp_path))


def folder_of(model, folder, tokenizer, processor=None, **changes):
    """A model's folder as others publish theirs: their preprocessor, `changes` of the text tower's configuration."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    config |= {"text_config_dict": None, "vision_config_dict": None}  # as LAION's and OpenAI's have them
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or {"size": 32, "crop_size": 32}))
    return str(folder)


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
    pixels = centre(clip.image_processor, picture)
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
    with pytest.raises(CoopError, match=r"takes pictures of 32 x 32 pixels and its preprocessor makes \d+ x \d+") as error:
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
    with pytest.raises(CoopError, match="holds no complete CLIPModel"):
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
