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


@pytest.fixture
def pickled(tmp_path, tokenizer, copy_of_mini):
    """A model folder whose weights are a pickle."""
    model = tiny_clip(tokenizer)
    model.config.save_pretrained(copy_of_mini)
    (copy_of_mini / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy_of_mini / "pytorch_model.bin")
    return copy_of_mini


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
