import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from samples import some_head

from coopcli.clip.backbone import load_backbone
from coopcli.errors import CoopError, UsageError
from coopcli.learned import head as module
from coopcli.learned.prompt import load_learned, load_prompt


def images(n=7, width=4, seed=1):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_logits(head, x):
    """One number at a time, in Python's floats."""
    weights, bias = head.weights.tolist(), head.bias.tolist() if head.bias is not None else None
    rows = []
    for row in x.tolist():
        logits = [sum(a * b for a, b in zip(row, w, strict=True)) + (bias[k] if bias else 0) for k, w in enumerate(weights)]
        for key, value in zip(head.keys.tolist(), head.values.tolist(), strict=True) if head.keys is not None else ():
            affinity = math.exp(-head.beta * (1 - sum(a * b for a, b in zip(row, key, strict=True))))
            logits[value] += head.alpha * affinity
        rows.append(logits)
    return torch.tensor(rows)


@given(st.booleans(), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_logits_one_by_one(bias, keys, classes, width, n, seed):
    head, x = some_head(bias, keys, classes, width, seed), images(n, width, seed + 1)
    assert torch.allclose(head.logits(x), slow_logits(head, x), atol=1e-5)


def test_many_images_are_taken_in_parts(monkeypatch):
    head, x = some_head(), images(23)
    whole = head.logits(x)
    monkeypatch.setattr(module, "AT_ONCE", 20)  # four images at a time
    parts, true = [], torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda affinity: (parts.append(len(affinity)), true(affinity))[1])
    assert torch.allclose(head.logits(x), whole, atol=1e-6)
    assert parts == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keys", [0, 5])
def test_what_is_saved_is_loaded(tmp_path, bias, keys):
    before = some_head(bias, keys)
    before.save(tmp_path / "head.safetensors")
    for path in (tmp_path, tmp_path / "head.safetensors"):
        after = load_learned(path)
        for name, value in vars(before).items():
            equal = torch.equal(vars(after)[name], value) if isinstance(value, torch.Tensor) else vars(after)[name] == value
            assert equal, name
    with safe_open(tmp_path / "head.safetensors", "pt") as file:  # plain safetensors
        assert torch.equal(file.get_tensor("weights"), before.weights)
        assert json.loads(file.metadata()["coop"])["method"] == "linear-probe"


def test_a_head_is_no_prompt(tmp_path):
    some_head().save(tmp_path / "head.safetensors")
    with pytest.raises(UsageError, match="holds a linear-probe head, not a prompt"):
        load_prompt(tmp_path)


def test_features_of_another_model():
    with pytest.raises(CoopError, match="reads features of 4 numbers; the model's have 5"):
        some_head().logits(images(width=5))


def test_among_some_classes_in_another_order():
    head, x = some_head(classes=4, keys=9), images()
    names, rows = [head.class_names[3], head.class_names[1]], [3, 1]
    assert torch.allclose(head.among(names).logits(x), head.logits(x)[:, rows], atol=1e-6)
    assert head.among(names).folders == ("c3", "c1")
    assert torch.equal(head.among(head.class_names).logits(x), head.logits(x))


def test_among_classes_without_keys(tmp_path):
    head = some_head(keys=2, values=torch.tensor([0, 0]))
    part = head.among(head.class_names[1:])
    assert part.keys is None
    part.save(tmp_path / "head.safetensors")
    assert torch.equal(load_learned(tmp_path).logits(images()), part.logits(images()))


def test_among_other_classes():
    with pytest.raises(CoopError, match='linear-probe head knows its own 3 classes and not "moon" or 1 more'):
        some_head().among(["class ☆1", "moon", "sun"])


def test_a_tuned_model_lies_beside_its_head(mini, tmp_path):
    model = load_backbone("mini", device="cpu").model
    with torch.no_grad():
        model.visual_projection.weight.mul_(2)
    from coopcli.clip.backbone import fingerprint_of

    tuned = replace(mini, model=model, fingerprint=fingerprint_of(model, mini.tokenizer, mini.image_processor))
    head = some_head(tuned=tuned, fingerprint=tuned.fingerprint)
    head.save(tmp_path / "run" / "head.safetensors")
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = load_learned(tmp_path / "moved")
    assert loaded.model == str(tmp_path / "moved" / "model")
    assert load_backbone(loaded.model, loaded.revision, device="cpu").fingerprint == head.fingerprint
    head.save(tmp_path / "moved" / "head.safetensors")  # over itself
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["head.safetensors", "model"]


def test_a_tuned_model_that_is_not_there(mini, tmp_path, monkeypatch):
    some_head(tuned=mini).save(tmp_path / "head.safetensors")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "head.safetensors"):
        with pytest.raises(CoopError, match="belongs to a fine-tuned model, but there is no folder"):
            load_learned(path)


def test_a_model_folder_that_cannot_be_written(mini, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoopError, match="cannot be written"):
        some_head(tuned=mini).save(tmp_path / "file" / "head.safetensors")


def test_two_classes_of_one_name_keep_their_own_weights():
    head, x = some_head(classes=4, keys=9, class_names=("missile", "sun", "missile", "moon")), images()
    assert torch.equal(head.among(head.class_names).logits(x), head.logits(x))
    assert torch.allclose(head.among(["moon", "missile"]).logits(x), head.logits(x)[:, [3, 0]], atol=1e-6)
