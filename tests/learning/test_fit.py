from dataclasses import replace

import pytest
import torch

from coopcli.clip.cache import FeatureCache
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.learning import fit as fitting
from coopcli.learning.fit import Watch, fit
from coopcli.learning.recipe import Recipe

QUICK = Recipe(epochs=3, views=2)


def test_flat_folder_is_tested_on_what_was_not_trained_on(mini, photos):
    result = fit(mini, load_data(str(photos)), QUICK, shots=4)
    assert len(result.data.train) == 12 and result.test.metrics.n == result.hand_written.metrics.n == 6
    assert not {item.name for item in result.data.train} & {item.name for item in result.test.items}


def test_split_folder_is_tested_on_its_test_split(mini, split_photos):
    result = fit(mini, load_data(str(split_photos)), QUICK, shots=2)
    assert len(result.data.train) == len(result.data.val) == 6
    assert {item.name.split("/")[0] for item in result.test.items} == {"test"}


def test_all_of_a_flat_folder_leaves_no_test(mini, photos, caplog):
    result = fit(mini, load_data(str(photos)), QUICK, shots=None)
    assert len(result.data.train) == 18 and result.test is None
    assert "no image is left to test on" in caplog.text


def test_a_class_with_fewer_images_is_told(mini, photos, caplog):
    (photos / "red" / "5.png").unlink()
    result = fit(mini, load_data(str(photos)), QUICK, shots=6)
    assert len(result.data.train) == 17
    assert 'class "red" has 5 train images' in caplog.text and "green" not in caplog.text


def test_words_as_start(mini, photos):
    data = load_data(str(photos))
    still = Recipe(epochs=1, views=1, warmup_lr=0.0)
    result = fit(mini, data, still, ContextSettings(4), shots=1, init="a photo of a")
    tokens = mini.tokenizer("a photo of a", add_special_tokens=False).input_ids
    assert torch.equal(result.prompt.context, mini.text_encoder.token_embedding[tokens])
    with pytest.raises(UsageError, match="is 4 tokens; --context-length 5"):
        fit(mini, data, still, ContextSettings(5), shots=1, init="a photo of a")


def test_online_views_are_encoded_in_every_epoch(mini, photos, tmp_path, monkeypatch):
    data, cache, seen = load_data(str(photos)), FeatureCache(tmp_path), []
    true = type(mini).encode_images
    monkeypatch.setattr(type(mini), "encode_images", lambda self, pixels, *_: (seen.append(pixels), true(self, pixels))[1])
    online = fit(mini, data, Recipe(epochs=3, views=0), shots=2, cache=cache)
    trained_on = seen[:3]  # what follows are the test images
    assert [len(pixels) for pixels in trained_on] == [6, 6, 6]
    assert not torch.equal(trained_on[0], trained_on[1]) and not torch.equal(trained_on[1], trained_on[2])
    assert online.log[-1].epoch == 2
    again = fit(mini, data, Recipe(epochs=3, views=0), shots=2, cache=cache)
    assert torch.equal(online.prompt.context, again.prompt.context)


@pytest.mark.same_bytes
def test_a_stopped_fit_goes_on_to_the_same_bytes(mini, photos, tmp_path, caplog):
    data, recipe, at = load_data(str(photos)), Recipe(epochs=6, views=2), tmp_path / "checkpoint"
    whole = fit(mini, data, recipe, shots=2, seed=3)

    def stop(log):
        if log.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(mini, data, recipe, shots=2, seed=3, watch=Watch(on_epoch=stop), checkpoint=at)
    resumed = fit(mini, data, recipe, shots=2, seed=3, checkpoint=at)
    assert "going on after epoch 4 of 6" in caplog.text
    assert torch.equal(resumed.prompt.context, whole.prompt.context) and resumed.log == whole.log
    caplog.clear()
    other = fit(mini, data, recipe, shots=2, seed=4, checkpoint=at)
    assert "training starts anew" in caplog.text
    assert torch.equal(other.prompt.context, fit(mini, data, recipe, shots=2, seed=4).prompt.context)


def test_full_gpu_memory_means_fewer_classes_at_a_time(mini, photos, monkeypatch, caplog):
    data, tried = load_data(str(photos)), []
    true = fitting.train_context

    def full(encoder, prompts, state, *rest):
        tried.append(state.class_chunk)
        if state.class_chunk == 0:
            raise torch.OutOfMemoryError
        return true(encoder, prompts, state, *rest)

    monkeypatch.setattr(fitting, "train_context", full)
    assert fit(mini, data, QUICK, shots=2).prompt.training["class_chunk"] == 1
    assert tried == [0, 1] and "--class-chunk 1" in caplog.text
    monkeypatch.setattr(fitting, "train_context", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(CoopError, match="does not hold one class"):
        fit(mini, data, QUICK, shots=2)


def test_a_context_that_runs_away_is_told_once(mini, photos, caplog):
    fit(mini, load_data(str(photos)), replace(QUICK, lr=1e7, warmup_epochs=0, optimizer="adam"), shots=2)
    assert caplog.text.count("the context runs away") == 1


def test_test_images_that_were_trained_on_are_told(mini, split_photos, caplog):
    fit(mini, load_data(str(split_photos)), QUICK, shots=4)
    assert "also trained on" not in caplog.text
    (split_photos / "test" / "red" / "copy.png").write_bytes((split_photos / "train" / "red" / "1.png").read_bytes())
    fit(mini, load_data(str(split_photos)), QUICK, shots=4)
    assert "1 of 10 test images are byte-identical to train images (first: test/red/copy.png is train/red/1.png)" in caplog.text


def test_same_seed_same_bytes(mini, photos, tmp_path):
    data = load_data(str(photos))
    for name in ("a", "b"):
        fit(mini, data, QUICK, shots=2, cache=FeatureCache(tmp_path / "cache")).prompt.save(tmp_path / name)
    fit(mini, data, QUICK, shots=2, cache=FeatureCache(None)).prompt.save(tmp_path / "c")
    fit(mini, data, QUICK, shots=2, seed=2).prompt.save(tmp_path / "other")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "other").read_bytes()
