from dataclasses import replace

import pytest
import torch

from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.learned.applied import learned_features
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
    assert '1 of 3 classes have fewer than 6 train images (first: "red" with 5); all of theirs are used' in caplog.text


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
    assert "resuming after epoch 4 of 6" in caplog.text
    assert torch.equal(resumed.prompt.context, whole.prompt.context) and resumed.log == whole.log
    caplog.clear()
    other = fit(mini, data, recipe, shots=2, seed=4, checkpoint=at)
    assert "training starts from the beginning" in caplog.text
    assert torch.equal(other.prompt.context, fit(mini, data, recipe, shots=2, seed=4).prompt.context)


@pytest.mark.same_bytes
@pytest.mark.parametrize(("class_chunk", "expected"), [(None, ["nothing", "layers"]), (2, ["nothing", "chunks", "layers"])])
def test_full_gpu_memory_means_recomputation_and_the_same_bytes(mini, photos, monkeypatch, caplog, class_chunk, expected):
    data, tried = load_data(str(photos)), []
    true = fitting.train_context
    whole = fit(mini, data, QUICK, shots=2, class_chunk=class_chunk)

    def full(encoder, task, state, on_epoch, recompute, *rest):
        tried.append(recompute)
        if recompute != "layers":
            raise torch.OutOfMemoryError
        return true(encoder, task, state, on_epoch, recompute, *rest)

    monkeypatch.setattr(fitting, "train_context", full)
    prompt = fit(mini, data, QUICK, shots=2, class_chunk=class_chunk).prompt
    assert tried == expected and "the GPU's memory is full" in caplog.text
    assert torch.equal(prompt.context, whole.prompt.context) and prompt.training == whole.prompt.training
    assert prompt.training["class_chunk"] == (class_chunk or 0)
    monkeypatch.setattr(fitting, "train_context", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(CoopError, match=r"cannot hold . classes at a time; try --class-chunk 1,"):
        fit(mini, data, QUICK, shots=2, class_chunk=class_chunk)


@pytest.mark.same_bytes
@pytest.mark.parametrize("free", [0, 1 << 50])
def test_free_memory_changes_no_bit(mini, photos, monkeypatch, tmp_path, free):
    data, cache = load_data(str(photos)), FeatureCache(tmp_path)
    monkeypatch.setattr("coopcli.clip.text_encoder.CHUNK_NODES", 8)
    expected = fit(mini, data, QUICK, shots=2, cache=cache).prompt
    assert expected.training["class_chunk"] == 1
    monkeypatch.setattr("coopcli.clip.text_encoder.free_memory", lambda device: free)
    assert torch.equal(fit(mini, data, QUICK, shots=2, cache=cache).prompt.context, expected.context)


@pytest.mark.parametrize("views", [2, 0])
def test_an_image_that_cannot_be_read_is_skipped_and_not_encoded_twice(mini, photos, monkeypatch, views):
    data, seen = load_data(str(photos)), []
    first = fit(mini, data, QUICK, shots=2).data.train[0]
    first.path.write_bytes(b"no image")
    with pytest.raises(CoopError, match=first.name):
        fit(mini, data, replace(QUICK, views=views), shots=2)
    true = type(mini).encode_images
    monkeypatch.setattr(
        type(mini), "encode_images", lambda self, pixels, *names: (seen.append(len(pixels)), true(self, pixels, *names))[1]
    )
    result = fit(mini, data, replace(QUICK, views=views), shots=2, on_error="skip")
    assert result.skipped == 1 and len(result.data.train) == 5 == result.prompt.training["images"]
    assert result.prompt.training["few_shot_sha256"] == result.data.sha256
    trained = seen[:-1]  # the last are the test images
    assert sum(trained) == (5 * 2 if views else 5 * 4)  # online: three epochs, and one look before


@pytest.mark.parametrize("shape", ["label", "model", "several"])
def test_what_no_file_could_hold_is_refused_before_training(mini, photos, shape):
    data = load_data(str(photos))
    backbone, long = mini, "x" * 1001
    if shape == "model":
        backbone = replace(mini, name=long)
    else:
        data = replace(data, folders=(long, *data.folders[1:]) if shape == "label" else (long,) * 3)
    trained = []
    with pytest.raises(CoopError, match=r'the (class folder|model name) "x+\.\.\." has 1001 characters; shorten it'):
        fit(backbone, data, QUICK, shots=2, watch=Watch(on_training=lambda: trained.append(1)))
    assert not trained


def test_a_prompt_that_is_too_large_for_a_file_is_refused_before_training(mini, photos, monkeypatch):
    monkeypatch.setattr("coopcli.learning.fit.MAX_FILE", (4 << 20) + 3 * 16 * mini.token_width * 4 - 1)
    trained, data = [], load_data(str(photos))
    with pytest.raises(CoopError, match=r"a prompt of 0\.0 GB cannot be saved"):
        fit(mini, data, QUICK, ContextSettings(csc=True), 2, watch=Watch(on_training=lambda: trained.append(1)))
    assert not trained
    fit(mini, data, QUICK, ContextSettings(), 2, watch=Watch(on_training=lambda: trained.append(1)))
    assert trained


@pytest.mark.parametrize("seed", [-1, 2**63, 10**400])
def test_a_seed_out_of_range(mini, photos, seed):
    with pytest.raises(UsageError, match="a seed must be a whole number from 0"):
        fit(mini, load_data(str(photos)), QUICK, shots=2, seed=seed)


def test_a_context_that_diverges_is_warned_of_once(mini, photos, caplog):
    fit(mini, load_data(str(photos)), replace(QUICK, lr=1e7, warmup_epochs=0, optimizer="adam"), shots=2)
    assert caplog.text.count("the context diverges") == 1


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


def test_kept_close_to_the_template_it_is_told(mini, photos):
    """The distance falls with the weight, to the template of the fit; the file says so, and only then."""
    data, template = load_data(str(photos)), "art of the {}."

    def fitted(weight):
        recipe = replace(QUICK, epochs=8, lr=0.02, keep_close=weight)
        return fit(mini, data, recipe, ContextSettings(4), shots=4, template=template).prompt

    near = hand_written_features(mini, [template], data.class_names)
    free, close = fitted(0.0), fitted(100.0)
    distances = [
        float((learned_features(mini, prompt, data.class_names) - near).norm(dim=1).mean()) for prompt in (free, close)
    ]
    assert distances[1] < 0.8 * distances[0]
    assert close.training["recipe"]["keep_close"] == 100 and close.training["recipe"]["close_to"] == template
    assert not {"keep_close", "close_to"} & set(free.training["recipe"])
