import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ran
from few_shot_tasks import check_method, clustered, without_val
from PIL import Image
from sklearn.linear_model import LogisticRegression

from coopcli.clip.backbone import load_backbone
from coopcli.clip.pixels import centre
from coopcli.data.fewshot import draw_few_shot
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.learned.classifier import Classifier
from coopcli.learned.prompt import load_learned
from coopcli.learning.methods import METHODS
from coopcli.learning.methods.linear_probe import GRID, best_exponent, fit, learn


def test_the_probe(mini, tmp_path):
    head = check_method(learn, *clustered(mini), tmp_path, at_least=0.9)
    assert head.training["C_chosen_on"] == "validation images" and head.training["parameters"] == 4 * 16 + 4


def test_features_of_their_own_length(coop, photos, tmp_path):
    """--no-normalize: the same as scikit-learn on the stock tower's raw features; its file is read so by every command."""
    grid = [
        "--model",
        "mini",
        "--methods",
        "linear-probe",
        "--shots",
        "2",
        "--seeds",
        "1",
        "--views",
        "1",
        "--jobs",
        "1",
        "--no-plot",
    ]
    told = {}
    for name, more in (("plain", []), ("raw", ["--no-normalize"])):
        told[name] = json.loads(ran(coop("sweep", photos, *grid, *more, "-o", name, "--json")))["results"][0]["top1"]
    (cell,) = (tmp_path / "raw" / "cells").iterdir()
    head, clip = load_learned(cell), load_backbone("mini", device="cpu")
    assert head.raw and not load_learned(next((tmp_path / "plain" / "cells").iterdir())).raw
    data = load_data(str(photos))
    drawn = draw_few_shot(data, 2, 1)

    def stock(items):
        pixels = torch.stack([torch.tensor(centre(clip.preprocessing, Image.open(item.path).convert("RGB"))) for item in items])
        inputs = clip.image_processor(
            [picture.permute(1, 2, 0).numpy() for picture in pixels], return_tensors="pt"
        ).pixel_values
        with torch.no_grad():
            return clip.model.get_image_features(pixel_values=inputs).pooler_output.double().numpy()

    train, test = stock(drawn.train), stock(drawn.test)
    probe = LogisticRegression(C=head.training["C"], max_iter=1000).fit(train, [item.label for item in drawn.train])
    assert np.linalg.norm(train, axis=1).min() > 2  # not of length 1, or nothing would be tested
    expected = probe.predict_proba(test)
    classifier = Classifier(head, clip)
    assert classifier.predict_proba([item.path for item in drawn.test]) == pytest.approx(expected, abs=2e-2)
    accuracy = float((expected.argmax(1) == [item.label for item in drawn.test]).mean())
    assert told["raw"] == pytest.approx(accuracy)
    evaluated = json.loads(ran(coop("eval", cell, photos, "--json")))
    assert evaluated["top1"] == classifier.score(
        [i.path for i in data.split("all")], [data.class_names[i.label] for i in data.split("all")]
    )
    moved = json.loads(ran(coop("transfer", cell, photos, "--no-plot", "--json")))["results"]
    assert moved[-1]["file"] == str(cell) and moved[-1]["top1"] == pytest.approx(accuracy)


@pytest.mark.parametrize("c", [0.1, 1.0, 30.0])
def test_the_fit_minimises_the_objective(mini, c):
    """At a minimum the gradient of |W|^2 / 2 + C * sum of cross-entropies is zero, and steps around cost."""
    task, _, _ = clustered(mini)
    weights, bias = (
        torch.from_numpy(part).requires_grad_() for part in fit(task.train.double().numpy(), task.labels.numpy(), c, 4)
    )

    def objective(w, b):
        return w.square().sum() / 2 + c * F.cross_entropy(task.train.double() @ w.T + b, task.labels, reduction="sum")

    at_minimum = objective(weights, bias)
    at_minimum.backward()
    assert torch.cat([weights.grad.flatten(), bias.grad]).abs().max() < 2e-3 * max(1.0, c)
    for seed in range(5):
        step = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(weights.detach() + 0.1 * step, bias.detach()) > at_minimum


def test_the_search_as_the_reference_walks():
    """The reference's own walk, told step by step, for accuracies that lead left, right, and nowhere."""
    for target in (-3.3, 0.4, 5.7):
        tried = []

        def accuracy(exponent, target=target, tried=tried):
            tried.append(exponent)
            return -abs(exponent - target)

        found = best_exponent(accuracy)
        peak = min(GRID, key=lambda e: abs(e - target))
        left, right = peak - 1, peak + 1
        for _ in range(8):
            final = right if abs(left - target) > abs(right - target) else left
            left, right = ((left + right) / 2, right) if final == right else (left, (left + right) / 2)
        assert found == pytest.approx(final) and abs(found - target) < 0.05
        assert len(tried) == len(set(tried)), "an accuracy was measured twice"
    assert best_exponent(lambda e: 0.5) == 5.0  # all alike: the first of the grid, then ever to the left


def test_without_validation_images(mini):
    task, images, labels = clustered(mini)
    head = learn(without_val(task))
    assert head.training["C_chosen_on"] == "4-fold cross-validation of the train images"
    assert (head.logits(images).argmax(-1) == labels).float().mean() > 0.9
    one, images, labels = clustered(mini, shots=1)
    head = learn(without_val(one))
    assert head.training["C"] == 1.0 and head.training["C_chosen_on"].startswith("nothing")
    assert (head.logits(images).argmax(-1) == labels).float().mean() > 0.8


def test_two_classes_and_a_class_without_images(mini):
    task, images, labels = clustered(mini, classes=2)
    assert (learn(task).logits(images).argmax(-1) == labels).float().mean() > 0.9
    weights, bias = fit(task.train.double().numpy(), task.labels.numpy(), 1.0, 2)
    z = task.train.double().numpy() @ weights.T + bias
    assert np.all(z[:, 0] == 0)  # the log-odds are those of the second class
    task, images, labels = clustered(mini)
    kept = task.labels != 2
    partial = replace(task, train=task.train[kept], labels=task.labels[kept], views=task.views[kept])
    for c in (0.01, 1000.0):  # short weights and long ones
        weights, bias = (torch.from_numpy(part).float() for part in fit(partial.train.numpy(), partial.labels.numpy(), c, 4))
        away = -F.normalize(weights[[0, 1, 3]], dim=-1)  # from each of the classes with images
        for x in (images, away, F.normalize(away.sum(0, keepdim=True), dim=-1)):
            assert not ((x @ weights.T + bias).argmax(-1) == 2).any()
    head = learn(partial)
    assert (head.logits(images).argmax(-1) == labels)[labels != 2].float().mean() > 0.9


def test_one_class_only(mini):
    task, _, _ = clustered(mini)
    kept = task.labels == 1
    with pytest.raises(CoopError, match="two classes or more"):
        learn(replace(task, train=task.train[kept], labels=task.labels[kept]))


def test_without_scikit_learn(mini, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"needs scikit-learn: pip install 'coopcli\[sweep\]'"):
        METHODS["linear-probe"].learn(clustered(mini)[0])
