"""Learned classifiers from Python: scikit-learn's manner, class features for others, and what is refused."""

import copy
import io
import multiprocessing
import pickle
import sys
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from conftest import COLOURS, learned_prompt, write_picture
from PIL import Image

from coopcli import CLIP, Classifier, FeatureCache, Prompt, evaluate, load_data
from coopcli.clip.backbone import Backbone
from coopcli.clip.image_features import image_features
from coopcli.clip.prompts import context_prompts
from coopcli.errors import CoopError, UsageError
from coopcli.learned.applied import as_head, learned_features
from coopcli.learned.head import Head


@pytest.fixture
def prompt(mini):
    return Prompt(learned_prompt(mini), mini)


def some_head(mini, names=tuple(COLOURS)):
    weights = 30 * torch.randn(len(names), mini.feature_width, generator=torch.Generator().manual_seed(0))
    about = dict(class_names=names, folders=names, model="mini", revision=None, fingerprint=mini.fingerprint, training={})
    return Head("linear-probe", weights, torch.tensor([0.3, 0.2, 0.1]), **about)


def test_clip_is_a_backbone_by_name(mini, tmp_path):
    clip = CLIP("mini", device="cpu")
    assert isinstance(clip, Backbone) and clip.fingerprint == mini.fingerprint and clip.dtype == "float32"
    assert CLIP("mini", device="cpu", dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(CoopError, match="nowhere"):
        CLIP(str(tmp_path / "nowhere"))


def test_predict_proba_predict_and_score_agree(prompt, photos):
    paths = sorted(photos.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    probabilities = prompt.predict_proba(paths)
    assert probabilities.shape == (18, 3) and probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(18), abs=1e-5)
    items = load_data(str(photos)).splits["all"]
    logits = as_head(prompt.clip, prompt.learned, tuple(COLOURS)).logits(image_features(prompt.clip, items, FeatureCache(None)))
    by_name = dict(zip([item.name for item in items], logits.softmax(-1).numpy(), strict=True))
    expected = np.stack([by_name[path.relative_to(photos).as_posix()] for path in paths])
    assert probabilities == pytest.approx(expected, abs=1e-6)

    predicted = prompt.predict(map(str, paths))  # any iterable, read once
    assert predicted.tolist() == [tuple(COLOURS)[row] for row in probabilities.argmax(axis=1)]
    assert list(prompt.classes_) == list(COLOURS)
    assert prompt.score(paths, labels) == np.mean(predicted == labels)
    assert prompt.score(paths, predicted) == 1.0
    assert prompt.predict_proba([]).shape == (0, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "YCbCr", "HSV"])
def test_a_picture_in_memory_is_what_it_is_in_a_file(prompt, tmp_path, mode):
    write_picture(tmp_path / "a.png", size=(70, 45))
    rgb = Image.open(tmp_path / "a.png")
    picture = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) << 8) if mode == "I;16" else rgb.convert(mode)
    assert picture.mode == mode
    (picture.convert("RGB") if mode in ("HSV", "YCbCr") else picture).save(tmp_path / "b.tiff")
    assert np.array_equal(prompt.predict_proba(picture), prompt.predict_proba(tmp_path / "b.tiff"))


@pytest.mark.same_bytes
def test_one_image_or_several_paths_or_arrays(prompt, photos):
    path = photos / "red" / "0.png"
    picture = Image.open(path)
    array = np.asarray(picture)
    (expected,) = prompt.predict_proba([path])
    grey = np.asarray(picture.convert("L"))
    for one in (path, str(path), picture, array, np.dstack([array, array[..., :1]])):
        assert prompt.predict_proba(one).tolist() == [expected.tolist()]
    assert prompt.predict_proba(np.stack([array, array])).tolist() == [expected.tolist()] * 2
    assert prompt.predict(grey).tolist() == prompt.predict(np.stack([grey] * 3, axis=-1)).tolist()


def test_class_features_are_the_prompts(prompt, mini):
    features = prompt.class_features()
    assert features.shape == (3, mini.feature_width)
    assert features.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    for names in (tuple(COLOURS), ("a sea lion", "blue")):
        prompts = context_prompts(mini.tokenizer, prompt.learned.settings, names)
        assert torch.equal(prompt.class_features(names), mini.text_encoder.encode(prompts, prompt.learned.context))
    features.requires_grad_()  # an ordinary tensor, not one of inference mode


def test_other_classes(prompt, mini, photos):
    other = Prompt(prompt.learned, mini, ["crimson", "navy"])
    assert set(other.predict(list((photos / "red").iterdir()))) <= {"crimson", "navy"}
    csc = learned_prompt(mini, csc=True)
    assert Prompt(csc, mini, ["blue", "red"]).class_features().equal(learned_features(mini, csc, ["blue", "red"]))
    with pytest.raises(CoopError, match="class-specific"):
        Prompt(csc, mini, ["crimson", "navy"])


def test_files_and_heads(mini, photos, tmp_path):
    learned_prompt(mini).save(tmp_path / "run" / "prompt.safetensors")
    some_head(mini).save(tmp_path / "head.safetensors")
    path = photos / "red" / "0.png"
    expected = Prompt(learned_prompt(mini), mini).predict_proba(path)
    for loaded in (Prompt.load(tmp_path / "run"), Classifier.load(str(tmp_path / "run" / "prompt.safetensors"), mini)):
        assert np.array_equal(loaded.predict_proba(path), expected)
    head = Classifier.load(tmp_path / "head.safetensors", mini, ["blue", "red"])
    assert list(head.classes_) == ["blue", "red"] and head.predict(path) in head.classes_
    with pytest.raises(UsageError, match="holds a linear-probe head, not a prompt"):
        Prompt.load(tmp_path / "head.safetensors", mini)
    with pytest.raises(UsageError, match="nowhere"):
        Prompt.load(tmp_path / "nowhere", mini)


def test_evaluate(prompt, mini, split_photos):
    data = load_data(str(split_photos))
    result = evaluate(prompt, data)
    items = data.splits["test"]
    assert result.metrics.n == len(items) == 9
    truth = [data.class_names[item.label] for item in items]
    assert result.metrics.top1 == prompt.score([item.path for item in items], truth)
    assert evaluate(prompt, data, "train[:50%]").metrics.n == 6
    # Among the data's own classes, in the data's own order.
    assert result.class_names == ("blue", "green", "red")
    assert evaluate(Classifier(some_head(mini), mini), data).class_names == ("blue", "green", "red")


def test_features_in_memory_are_bounded(prompt, mini, tmp_path):
    assert prompt.cache.path is None and prompt.cache.max_bytes() == 2**24
    assert Prompt(prompt.learned, mini, cache=FeatureCache(tmp_path)).cache.max_bytes() is None


def test_what_is_refused(prompt, mini, photos):
    path = photos / "red" / "0.png"
    for wrong in (
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((2, 8, 8, 3)),
        np.zeros(8, np.uint8),
        [3],
        [None],
    ):
        with pytest.raises(UsageError, match="image 0 is a"):
            prompt.predict(wrong)
    with pytest.raises(CoopError, match="gone"):
        prompt.predict([path, "gone.png"])
    with pytest.raises(UsageError, match='unknown class "crimson"; the classes are red, green, blue'):
        prompt.score([path], ["crimson"])
    for images, labels in (([path], ["red", "red"]), ([], [])):
        with pytest.raises(UsageError, match=f"{len(images)} images and {len(labels)} labels; give one label"):
            prompt.score(images, labels)
    stranger = copy.copy(mini)
    object.__setattr__(stranger, "fingerprint", "0" * 32)
    with pytest.raises(CoopError, match="another model"):
        Prompt(prompt.learned, stranger)


def test_errors_do_not_list_thousands_of_classes(prompt, photos):
    names = [f"class {number}" for number in range(1000)]
    with pytest.raises(UsageError) as error:
        Prompt(prompt.learned, prompt.clip, [*names, "class 7"])
    assert len(str(error.value)) < 300
    many = Prompt(prompt.learned, prompt.clip, names)
    with pytest.raises(UsageError, match=r'unknown class "red"; the classes are class 0, .* and 980 more$'):
        many.score([], ["red"])


@pytest.mark.parametrize("names", [[], ["red"], ["red", "red"], "red"])
def test_classes_that_are_no_choice(prompt, names):
    with pytest.raises(UsageError, match="two or more, each once"):
        Prompt(prompt.learned, prompt.clip, names)


def test_arguments_of_another_kind(prompt):
    for wrong in ({"dtype": "float16"}, {"device": "foo"}):
        with pytest.raises(UsageError, match=next(iter(wrong.values()))):
            CLIP("mini", **wrong)
    for image in (3, None, [None]):
        with pytest.raises(UsageError, match="a path, a PIL image or an array is needed"):
            prompt.predict(image)


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def by_joblib(value):
    content = io.BytesIO()
    joblib.dump(value, content)
    content.seek(0)
    return joblib.load(content)


@pytest.mark.parametrize("copied", [by_pickle, copy.copy, copy.deepcopy, by_joblib])
def test_copies_predict_the_same(mini, photos, tmp_path, copied):
    """What Pool.map, joblib and a program's own copies do."""
    paths = sorted(photos.rglob("*.png"))[::5]
    for original in (
        Prompt(learned_prompt(mini), mini),
        Prompt(learned_prompt(mini), mini, cache=FeatureCache(tmp_path / "cache")),
        Classifier(some_head(mini), mini),
        Prompt(learned_prompt(mini), CLIP("mini", device="cpu")),
    ):
        expected = original.predict_proba(paths)  # what is lazy is there
        original.class_features() if isinstance(original, Prompt) else None
        other = copied(original)
        assert type(other) is type(original) and list(other.classes_) == list(original.classes_)
        assert np.array_equal(other.predict_proba(paths), expected)
        assert other.cache.path == original.cache.path and other.cache.max_bytes() == original.cache.max_bytes()
        if isinstance(other, Prompt):
            assert torch.equal(other.class_features(["moon", "sun"]), original.class_features(["moon", "sun"]))


@pytest.mark.skipif(sys.platform != "linux", reason="starts its processes by fork")
def test_a_pool_maps_them(mini, photos):
    paths = [[path] for path in sorted(photos.rglob("*.png"))[::6]]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for classifier in (Prompt(learned_prompt(mini), mini), Classifier(some_head(mini), mini)):
            expected = [classifier.predict(each).tolist() for each in paths]
            assert [names.tolist() for names in pool.map(classifier.predict, paths)] == expected


def test_a_worker_of_a_pool_decodes_in_threads(prompt, photos, monkeypatch):
    """multiprocessing.Pool forbids its workers to start processes."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    monkeypatch.setattr("coopcli.clip.image_features.WORTH_PROCESSES", 2)
    assert prompt.predict(sorted(photos.rglob("*.png"))).shape == (18,)


def test_arrays_of_paths(prompt, photos):
    paths = sorted(photos.rglob("*.png"))[::6]
    expected = prompt.predict_proba(paths).tolist()
    texts = np.array([str(path) for path in paths])
    for given in (texts, texts.astype(object), np.array(paths, dtype=object), texts.reshape(-1, 1)):
        assert prompt.predict_proba(given).tolist() == expected
    assert prompt.predict(texts[0]).shape == prompt.predict(np.array(str(paths[0]))).shape == (1,)
    assert prompt.score(texts, prompt.predict(texts)) == 1.0
    pictures = np.empty(1, object)
    pictures[0] = Image.open(paths[0])
    assert prompt.predict_proba(pictures).tolist() == expected[:1]


def test_what_they_are_reads_in_one_line(prompt, mini, photos):
    """In an interpreter or a notebook: no tensors, no towers, the names of a few classes."""
    assert repr(prompt) == "<Prompt 4 vectors, end, 3 classes (red, green, blue) on mini>"
    assert repr(prompt.learned) == "<LearnedPrompt 4 vectors, end, 3 classes (red, green, blue) on mini>"
    assert repr(Classifier(some_head(mini), mini)) == "<Classifier linear-probe, 3 classes (red, green, blue) on mini>"
    many = replace(some_head(mini), class_names=("a\x1b", *"bcde"), folders=tuple("abcde"))
    assert "\x1b" not in repr(many) and "5 classes (" in repr(many) and ", ...)" in repr(many)
    csc = Prompt(learned_prompt(mini, csc=True), mini)
    assert "4 vectors for each class, end" in repr(csc)
    assert repr(mini) == f"<Backbone mini on cpu, float32, fingerprint {mini.fingerprint[:12]}>"
    assert repr(CLIP("mini", device="cpu", exif=True)).startswith("<CLIP mini on cpu, float32, images turned by EXIF, fing")
