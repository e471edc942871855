import json
import shutil

import pytest
import torch
from conftest import tiny_clip
from safetensors.torch import load_file, save_file

from coopcli.backbone import MINI_FOLDER, fingerprint_of, load_backbone, pick_device
from coopcli.errors import CoopError, UsageError


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


def test_a_folder_of_another_clip(tmp_path, tokenizer, copy_of_mini):
    tiny_clip(tokenizer).save_pretrained(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(copy_of_mini / name, tmp_path / "tiny" / name)
    assert load_backbone(str(tmp_path / "tiny")).feature_width == 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        pick_device("cuda")
