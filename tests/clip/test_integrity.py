"""Models that are not whole are refused in one line: by their config, weights, tokenizer or numbers."""

import json

import pytest
import torch
import transformers
from conftest import folder_of, tiny_clip
from families import folder_of_family
from safetensors.torch import load_file, save_file

from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import context_features, hand_written_features
from coopcli.clip.image_features import image_features
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import CoopError


@pytest.fixture
def folder(tmp_path, tokenizer):
    folder_of(tiny_clip(tokenizer), tmp_path / "model", tokenizer)
    return tmp_path / "model"


def refused(folder, *words):
    with pytest.raises(CoopError) as error:
        load_backbone(str(folder), device="cpu")
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and str(folder) in message
    for word in words:
        assert word in message
    return message


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, tower, **changes):
    config = json.loads((folder / "config.json").read_text())
    config[tower] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def without(*beginnings):
    def change(weights):
        for key in list(weights):
            if key.startswith(beginnings):
                del weights[key]

    return change


@pytest.mark.parametrize(
    ("beginning", "count", "first"),
    [
        ("text_projection", "1 weight ", "text_projection.weight"),
        ("text_model.encoder.layers.1.", "16 weights", "text_model.encoder.layers.1.layer_norm1.bias"),
        ("vision_model.", "39 weights", "vision_model.embeddings.class_embedding"),
        ("logit_scale", "1 weight ", "logit_scale"),
    ],
)
def test_missing_weights(folder, beginning, count, first):
    change_weights(folder, without(beginning))
    refused(folder, f"lacks {count}", f'first: "{first}"')


@pytest.mark.parametrize("key", ["text_model.encoder.layers.3.mlp.fc1.weight", "adapter.weight", "text_model.head.bias"])
def test_weights_that_the_model_does_not_have(folder, key):
    change_weights(folder, lambda weights: weights.update({key: torch.ones(2)}))
    refused(folder, "has 1 weight that a CLIPModel does not have", f'"{key}"')


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("text_projection.weight", (24, 32)),
        ("text_model.embeddings.position_embedding.weight", (32, 64)),
        ("logit_scale", (3,)),
    ],
)
def test_misshapen_weights(folder, key, shape):
    change_weights(folder, lambda weights: weights.update({key: torch.ones(shape)}))
    refused(folder, "has 1 weight of another shape", f'"{key}", {list(shape)} instead of')


def test_harmless_extras_are_let_through(folder):
    fingerprint = load_backbone(str(folder)).fingerprint
    extras = {f"{tower}_model.embeddings.position_ids": torch.arange(n)[None] for tower, n in (("text", 77), ("vision", 17))}
    change_weights(folder, lambda weights: weights.update(extras))
    assert load_backbone(str(folder)).fingerprint == fingerprint


def test_missing_weights_of_a_pickle(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    without("text_projection")(weights)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CoopError, match=r'lacks 1 weight \(first: "text_projection.weight"\)'):
        load_backbone(str(folder), allow_pickle=True)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
@pytest.mark.parametrize(
    ("key", "size"),
    [
        ("num_hidden_layers", 200_000), ("num_hidden_layers", -1), ("hidden_size", 0), ("hidden_size", 10**30),
        ("intermediate_size", 10**9), ("num_hidden_layers", 256), ("num_hidden_layers", "x"), ("num_attention_heads", 7),
        ("hidden_act", "nothing"), ("layer_norm_eps", "small"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be(folder, tower, key, size):
    change_config(folder, tower, **{key: size})
    refused(folder)


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "something new"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tower", [None, "text_config"])
def test_quantised_models(folder, quantised, tower):
    config = json.loads((folder / "config.json").read_text())
    (config[tower] if tower else config)["quantization_config"] = quantised
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, f"is quantised ({quantised['quant_method']}); use the model that it was made from")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_weights_of_whole_numbers(folder, dtype):
    """transformers would take the codes for the weights."""

    def change(weights):
        key = "text_model.encoder.layers.1.mlp.fc1.weight"
        weights[key] = (30 * weights[key] + 60).to(dtype)

    change_weights(folder, change)
    refused(folder, 'is quantised: "text_model.encoder.layers.1.mlp.fc1.weight" holds whole numbers from')


def test_a_projection_that_changes_nothing_is_let_through(folder):
    change_weights(folder, lambda weights: weights.update({"visual_projection.weight": torch.eye(24, 32)}))
    assert load_backbone(str(folder), device="cpu").feature_width == 24


def test_a_tokenizer_for_other_lengths_is_told(folder, caplog):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 248}))
    load_backbone(str(folder), device="cpu")
    assert "is for texts of 248 tokens and its text tower for 77" in caplog.text


def test_towers_of_different_widths(tmp_path, monkeypatch):
    """ALIGN's image tower ends without a projection: its width must be that of the text's."""
    config = transformers.AlignConfig
    monkeypatch.setattr(transformers, "AlignConfig", lambda **given: config(**given | {"projection_dim": 16}))
    backbone = load_backbone(folder_of_family("align", tmp_path / "align"), device="cpu")
    with pytest.raises(
        CoopError, match="image features have 8 numbers and its text features 16; correct the projection's size"
    ):
        backbone.encode_images(torch.zeros(1, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8))


@pytest.mark.parametrize("size", [0, -3, 2**40, 300_000])
def test_vocabularies_that_cannot_be(folder, size):
    change_config(folder, "text_config", vocab_size=size)
    refused(folder)


@pytest.mark.parametrize("files", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_missing_tokenizer_files(folder, files):
    for file in files:
        (folder / file).unlink()
    refused(folder, "tokenizer")


def test_a_tokenizer_without_merges(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    refused(folder, "has 0 merges for 4096 tokens")


def test_a_tokenizer_with_more_tokens_than_the_tower(tmp_path, tokenizer):
    model = tiny_clip(tokenizer)
    model.config.text_config.vocab_size = 4000
    model.text_model.embeddings.token_embedding = torch.nn.Embedding(4000, 64)
    folder_of(model, tmp_path / "small", tokenizer)
    refused(tmp_path / "small", "has ids up to 4095, the text tower 4000 tokens")


def test_a_tokenizer_with_far_fewer_tokens_than_the_tower(tmp_path, tokenizer):
    model = tiny_clip(tokenizer)
    model.config.text_config.vocab_size = 9000
    model.text_model.embeddings.token_embedding = torch.nn.Embedding(9000, 64)
    folder_of(model, tmp_path / "large", tokenizer)
    refused(tmp_path / "large", "knows 4096 of 9000 tokens")


@pytest.mark.parametrize(("eos", "pad"), [(5, 4095), (4094, 4095), (4095, 4096)])
def test_special_ids_that_contradict_the_tokenizer(folder, eos, pad):
    change_config(folder, "text_config", eos_token_id=eos, pad_token_id=pad)
    refused(folder, "4095" if pad == 4095 else "pad_token_id 4096")


def test_the_largest_id_ends_a_prompt_in_configs_of_openai(folder, tokenizer):
    change_config(folder, "text_config", eos_token_id=2, bos_token_id=0, pad_token_id=1)
    load_backbone(str(folder))
    tokens = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokens.replace("4095", "5000").replace("4094", "4095").replace("5000", "4094"))
    load_backbone(str(folder))  # both special tokens are larger than all others
    swapped = json.loads(tokens)
    text = json.dumps(swapped).replace("4095", "5000").replace(": 300,", ": 4095,").replace("5000", "300")
    (folder / "tokenizer.json").write_text(text)
    refused(folder, "ends a text with id 300, and the config expects the largest id")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["text_model.encoder.layers.0.mlp.fc1.bias", "visual_projection.weight", "logit_scale"])
def test_weights_that_are_not_finite(folder, key, value):
    def change(weights):
        weights[key].view(-1)[0] = value

    change_weights(folder, change)
    refused(folder, "1 weight with numbers that are not finite", f'1 in "{key}"')


def test_a_logit_scale_beyond_float(folder):
    change_weights(folder, lambda weights: weights.update({"logit_scale": torch.tensor(1000.0)}))
    refused(folder, "temperature is 1000")


def test_features_that_are_not_finite_name_the_image(mini, photos, tmp_path, monkeypatch):
    true, cache = type(mini).image_tower, FeatureCache(tmp_path)
    items = load_data(str(photos)).splits["all"]

    def overflow(self, pixels):
        features = true(self, pixels)
        features[3, 0] = torch.inf
        return features

    with monkeypatch.context() as patch:
        patch.setattr(type(mini), "image_tower", overflow)
        with pytest.raises(CoopError, match=rf'image "{items[3].name}" has numbers that are not finite \(2 of 18'):
            image_features(mini, items, cache)
        with pytest.raises(CoopError, match='image "4" has numbers that are not finite'):
            mini.encode_images(torch.zeros(5, 3, *[mini.image_size] * 2, dtype=torch.uint8))
    assert cache.size()[0] == 0 and image_features(mini, items, cache).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_name_the_class(mini, tmp_path, monkeypatch, value):
    cache, how = FeatureCache(tmp_path), ContextSettings(2, csc=True)
    context, names = torch.zeros(3, 2, mini.text_encoder.width), ["star", "ring", "heart"]
    features = torch.tensor([[1.0], [value], [1.0]]).expand(3, mini.feature_width)
    monkeypatch.setattr(type(mini.text_encoder), "__call__", lambda *_: features)
    with pytest.raises(CoopError, match='class "ring" has numbers that are not finite'):
        context_features(mini, context, how, names, cache)
    with pytest.raises(CoopError, match='class "ring" has numbers that are not finite'):
        hand_written_features(mini, ["a {}.", "{}"], names, cache)
    assert cache.size()[0] == 0
