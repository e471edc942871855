from dataclasses import replace

import pytest
import torch
from conftest import write_picture

from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.image_features import image_features, view_features
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.experiments.experiment import Laboratory
from coopcli.experiments.grid import Cell, Plan, Variant
from coopcli.learned.applied import learned_features
from coopcli.learned.prompt import load_learned
from coopcli.learning.fit import fit
from coopcli.learning.methods import METHODS
from coopcli.learning.methods.fine_tune import FineTuning
from coopcli.learning.recipe import Recipe

TEMPLATES = ("a photo of a {}.", "art of a {}.")
QUICK = Recipe(epochs=3, views=2)


@pytest.fixture
def splits(tmp_path):
    """Five classes in train, val and test."""
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        for k in range(5):
            for i in range(count):
                path = tmp_path / "splits" / split / f"c{k}" / f"{i}.png"
                write_picture(path, (50 * k, 255 - 50 * k, 99), seed=100 * len(split) + 10 * k + i)
    return load_data(str(tmp_path / "splits"))


def laboratory(data, tmp_path, **plan):
    return Laboratory(data, Plan(TEMPLATES[0], TEMPLATES, device="cpu", views=2, **plan), FeatureCache(tmp_path / "features"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("coopcli.experiments.experiment.paper_recipe", lambda shots, n_classes: QUICK)


def by_hand(mini, data, features, labels):
    """Top-1 without any of coop's evaluation."""
    items = [item for item in data.split("test") if item.label in labels]
    images = image_features(mini, items, FeatureCache(None))
    hits = [int((images[row] @ features.T).argmax()) == item.label - labels.start for row, item in enumerate(items)]
    return sum(hits) / len(hits)


@pytest.mark.same_bytes
def test_a_prompt_is_the_one_that_fit_learns(mini, splits, tmp_path):
    cell = Cell("coop", "mini", 2, 3, Variant(n_ctx=4, position="middle", csc=True))
    result = laboratory(splits, tmp_path).run(cell, tmp_path / "cell")
    fitted = fit(mini, splits, QUICK, ContextSettings(4, "middle", True), shots=2, seed=3)
    assert torch.equal(load_learned(tmp_path / "cell").context, fitted.prompt.context)
    assert result.top1 == fitted.test.metrics.top1 and result.macro == fitted.test.metrics.macro
    assert (
        result.few_shot_sha256 == fitted.data.sha256
        and result.parameters == 5 * 4 * mini.token_width
        and result.train_images == 10
    )


def test_online_views_are_for_prompts(mini, splits, tmp_path):
    plan = Plan(TEMPLATES[0], TEMPLATES, device="cpu", views=0)
    lab = Laboratory(splits, plan, FeatureCache(tmp_path / "features"))
    lab.run(Cell("coop", "mini", 1, 1, Variant(n_ctx=2)), tmp_path / "cell")
    fitted = fit(mini, splits, replace(QUICK, views=0), ContextSettings(2), shots=1, seed=1)
    assert torch.equal(load_learned(tmp_path / "cell").context, fitted.prompt.context)
    lab.run(Cell("tip-adapter", "mini", 1, 1), tmp_path / "tip")
    views = view_features(mini, fitted.data.train, range(16), FeatureCache(None))
    assert torch.allclose(load_learned(tmp_path / "tip").keys, torch.nn.functional.normalize(views.mean(1), dim=-1))


def test_words_set_the_context_length(splits, tmp_path):
    laboratory(splits, tmp_path).run(Cell("coop", "mini", 1, 1, Variant(init="a photo of a")), tmp_path / "cell")
    assert load_learned(tmp_path / "cell").settings.n_ctx == 4


def test_hand_written_prompts(mini, splits, tmp_path):
    lab = laboratory(splits, tmp_path)
    for method, templates in (("zeroshot", TEMPLATES[:1]), ("ensemble", TEMPLATES)):
        features = hand_written_features(mini, templates, splits.class_names)
        assert lab.run(Cell(method, "mini"), tmp_path).top1 == by_hand(mini, splits, features, range(5))


def test_base_to_new(mini, splits, tmp_path):
    lab = laboratory(splits, tmp_path, classes="base")
    result = lab.run(Cell("coop", "mini", 2, 1, Variant()), tmp_path / "cell")
    prompt = load_learned(tmp_path / "cell")
    assert prompt.class_names == ("c0", "c1", "c2")
    for names, labels, share in ((prompt.class_names, range(3), result.top1), (("c3", "c4"), range(3, 5), result.new)):
        assert share == by_hand(mini, splits, learned_features(mini, prompt, names), labels)
    total = result.top1 + result.new
    assert result.harmonic == pytest.approx(2 * result.top1 * result.new / total if total else 0)
    zeroshot = lab.run(Cell("zeroshot", "mini"), tmp_path)
    assert zeroshot.new == by_hand(mini, splits, hand_written_features(mini, TEMPLATES[:1], ("c3", "c4")), range(3, 5))
    csc = lab.run(Cell("coop", "mini", 2, 1, Variant(csc=True)), tmp_path / "csc")
    assert csc.top1 is not None and csc.new is None and csc.harmonic is None


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.function])
def test_a_head_is_scored_as_its_file_is(splits, tmp_path, method, monkeypatch):
    monkeypatch.setattr("coopcli.learning.methods.fine_tune.FineTuning", lambda: FineTuning(epochs=3, lr=1e-2))
    result = laboratory(splits, tmp_path).run(Cell(method, "mini", 4, 1), tmp_path / "cell")
    head = load_learned(tmp_path / "cell")
    assert head.method == method and result.parameters == head.training["parameters"]
    items = splits.split("test")
    seen = image_features(load_backbone(head.model, device="cpu"), items, FeatureCache(None))  # of the tuned model, if any
    predicted = head.logits(seen).argmax(-1).tolist()
    hits = [item.label == best for item, best in zip(items, predicted, strict=True)]
    assert result.top1 == sum(hits) / len(hits)


@pytest.mark.parametrize(("begin", "backwards"), [(0.0, False), (0.5, False), (1.0, True), (0.5, True), (0.9, True)])
def test_processes_prepare_from_different_ends(splits, tmp_path, monkeypatch, begin, backwards):
    lab, order = laboratory(splits, tmp_path), []
    monkeypatch.setattr("coopcli.experiments.experiment.readable_views", lambda backbone, part, *_: order.extend(part))
    lab.prepare([Cell("zeroshot", "mini", 0, 1)], lambda *step: None, begin, backwards)
    place = int(begin * len(lab.test))
    assert sorted(map(lab.test.index, order)) == list(range(len(lab.test)))
    assert [lab.test.index(item) for item in order[:2]] == ([place - 1, place - 2] if backwards else [place, place + 1])


def test_what_is_prepared_is_not_encoded_again(splits, tmp_path, monkeypatch):
    lab = laboratory(splits, tmp_path)
    cells = [Cell("coop", "mini", shots, seed, Variant()) for shots in (1, 2) for seed in (1, 2)]
    steps = []
    lab.prepare(cells, lambda *step: steps.append(step))
    assert {step for step, _, _ in steps} == {"test images", "train images"}
    monkeypatch.setattr(type(lab.backbone("mini")), "encode_images", lambda *a: pytest.fail("encoded again"))
    assert all(lab.run(cell, tmp_path / cell.folder).top1 is not None for cell in cells)
