import json

import pytest
import torch

from coopcli.artifact import load_prompt
from coopcli.cache import FeatureCache
from coopcli.errors import UsageError
from coopcli.fitting import Watch, few_shot_hash, fit, write_run
from coopcli.images import load_data
from coopcli.prompts import ContextSettings
from coopcli.training import Recipe

QUICK = Recipe(epochs=3, views=2)


def test_flat_folder_is_tested_on_what_was_not_trained_on(mini, photos):
    result = fit(mini, load_data(str(photos)), QUICK, shots=4)
    assert len(result.train_items) == 12 and result.test.metrics.n == result.hand_written.metrics.n == 6
    assert not {item.name for item in result.train_items} & {item.name for item in result.test.items}


def test_split_folder_is_tested_on_its_test_split(mini, split_photos):
    result = fit(mini, load_data(str(split_photos)), QUICK, shots=2)
    assert len(result.train_items) == len(result.val_items) == 6
    assert {item.name.split("/")[0] for item in result.test.items} == {"test"}


def test_all_of_a_flat_folder_leaves_no_test(mini, photos, caplog):
    result = fit(mini, load_data(str(photos)), QUICK, shots=None)
    assert len(result.train_items) == 18 and result.test is None
    assert "no image is left to test on" in caplog.text


def test_a_class_with_fewer_images_is_told(mini, photos, caplog):
    (photos / "red" / "5.png").unlink()
    result = fit(mini, load_data(str(photos)), QUICK, shots=6)
    assert len(result.train_items) == 17
    assert 'class "red" has 5 train images' in caplog.text and "green" not in caplog.text


def test_words_as_start(mini, photos):
    data = load_data(str(photos))
    still = Recipe(epochs=1, views=1, warmup_lr=0.0)
    result = fit(mini, data, still, ContextSettings(4), shots=1, init="a photo of a")
    tokens = mini.tokenizer("a photo of a", add_special_tokens=False).input_ids
    assert torch.equal(result.prompt.context, mini.text_encoder.token_embedding[tokens])
    with pytest.raises(UsageError, match="is 4 tokens; --context-length 5"):
        fit(mini, data, still, ContextSettings(5), shots=1, init="a photo of a")


def test_run_folder_and_steps(mini, split_photos, tmp_path):
    steps, epochs = [], []
    watch = Watch(lambda *step: steps.append(step), epochs.append)
    data = load_data(str(split_photos))
    result = fit(mini, data, QUICK, ContextSettings(2, "middle", True), shots=2, seed=3, cache=FeatureCache(None), watch=watch)
    write_run(tmp_path / "run", result, {"seed": 3})
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"prompt.safetensors", "metrics.json", "log.jsonl", "fewshot.json", "settings.json"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["learned"]["top1"] == result.test.metrics.top1
    assert metrics["few_shot_sha256"] == few_shot_hash(result.train_items)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == len(epochs) == 3
    assert json.loads((tmp_path / "run" / "fewshot.json").read_text())["train"] == [item.name for item in result.train_items]
    assert {step for step, _, _ in steps} == {"train images", "test images"}
    prompt = load_prompt(tmp_path / "run")
    assert prompt.context.shape == (3, 2, 128)
    assert prompt.training["seed"] == 3 and prompt.training["recipe"]["views"] == 2


def test_online_views_are_encoded_in_every_epoch(mini, photos, tmp_path, monkeypatch):
    data, cache, seen = load_data(str(photos)), FeatureCache(tmp_path), []
    true = type(mini).encode_images
    monkeypatch.setattr(type(mini), "encode_images", lambda self, pixels: (seen.append(pixels), true(self, pixels))[1])
    online = fit(mini, data, Recipe(epochs=3, views=0), shots=2, cache=cache)
    trained_on = seen[:3]  # what follows are the test images
    assert [len(pixels) for pixels in trained_on] == [8, 8, 8]
    assert not torch.equal(trained_on[0], trained_on[1]) and not torch.equal(trained_on[1], trained_on[2])
    assert online.log[-1].epoch == 2
    again = fit(mini, data, Recipe(epochs=3, views=0), shots=2, cache=cache)
    assert torch.equal(online.prompt.context, again.prompt.context)


def test_same_seed_same_bytes(mini, photos, tmp_path):
    data = load_data(str(photos))
    for name in ("a", "b"):
        fit(mini, data, QUICK, shots=2, cache=FeatureCache(tmp_path / "cache")).prompt.save(tmp_path / name)
    fit(mini, data, QUICK, shots=2, cache=FeatureCache(None)).prompt.save(tmp_path / "c")
    fit(mini, data, QUICK, shots=2, seed=2).prompt.save(tmp_path / "other")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "other").read_bytes()
