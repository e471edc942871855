import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from coopcli.data.load import ImageItem
from coopcli.errors import CoopError
from coopcli.learned.scores import MATRIX_CLASSES, evaluate_features, evaluate_logits, score


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80))
def test_metrics_counted_one_by_one(pairs):
    labels, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    metrics = score(labels, predicted, 5)
    assert metrics.n == len(pairs)
    assert metrics.top1 == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    recalls = [sum(b == k for a, b in pairs if a == k) / n if (n := sum(a == k for a, _ in pairs)) else None for k in range(5)]
    assert metrics.per_class == recalls
    present = [recall for recall in recalls if recall is not None]
    assert metrics.macro == pytest.approx(sum(present) / len(present))
    assert metrics.confusion == [[pairs.count((a, b)) for b in range(5)] for a in range(5)]


def test_evaluation_by_hand():
    items = [ImageItem(str(i), label, bytes) for i, label in enumerate([0, 1, 1, 2])]
    axes = torch.eye(3)
    images = F.normalize(torch.tensor([[2.0, 1, 0], [0, 3, 1], [3, 2, 0], [0, 0, 1]]), dim=-1)
    result = evaluate_logits(10 * images @ axes.T, ["a", "b", "c"], items)
    assert result.predicted == [0, 1, 0, 2]
    first = [math.exp(10 * x) for x in images[0].tolist()]
    assert result.probability[0] == pytest.approx(first[0] / sum(first))
    assert result.metrics.top1 == 0.75
    assert result.as_dict()["per_class"] == {"a": 1.0, "b": 0.5, "c": 1.0}


def test_no_images():
    with pytest.raises(CoopError, match="no images"):
        evaluate_logits(torch.zeros(0, 2), ["a", "b"], [])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80))
def test_many_classes_are_counted_without_a_matrix(pairs):
    """The same metrics as with a matrix, by hits and the largest confusions."""
    labels, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    small = score(labels, predicted, 5)
    many = score(labels, predicted, MATRIX_CLASSES + 1)
    assert many.confusion is None and small.images is small.largest is None
    assert (many.n, many.top1, many.macro) == (small.n, small.top1, small.macro)
    assert many.per_class[:5] == small.per_class and set(many.per_class[5:]) == {None}
    assert many.counts()[:5] == small.counts() and sum(many.counts()) == len(pairs)
    assert many.hits[:5] == [small.confusion[k][k] for k in range(5)]
    assert many.confusions() == small.confusions() and many.confusions(2) == small.confusions(2)
    assert [n for *_, n in many.confusions()] == sorted((n for *_, n in many.confusions()), reverse=True)


def test_many_classes_as_json():
    k = MATRIX_CLASSES + 1
    items = [ImageItem(str(i), label, bytes) for i, label in enumerate([0, 1, 1, 2])]
    logits = torch.zeros(4, k)
    for row, best in enumerate([0, 2, 2, 2]):
        logits[row, best] = 1.0
    told = evaluate_logits(logits, [f"c{i}" for i in range(k)], items).as_dict()
    assert "confusion" not in told and told["largest_confusions"] == [{"true": "c1", "predicted": "c2", "images": 2}]
    assert told["images"]["c1"] == 2 and told["hits"]["c1"] == 0 and told["hits"]["c2"] == 1 and len(told["hits"]) == k
    few = evaluate_logits(logits[:, :3], ["a", "b", "c"], items).as_dict()
    assert list(few) == ["class_names", "n", "top1", "macro", "per_class", "confusion"]


def test_logits_come_by_blocks(monkeypatch):
    monkeypatch.setattr("coopcli.learned.scores.BLOCK", 10)
    features, weights, sizes = torch.randn(8, 6), torch.randn(3, 6), []
    items = [ImageItem(str(i), i % 3, bytes) for i in range(8)]

    def classify(images):
        sizes.append(len(images))
        return images @ weights.T

    by_blocks = evaluate_features(classify, features, ["a", "b", "c"], items)
    whole = evaluate_logits(features @ weights.T, ["a", "b", "c"], items)
    assert sizes == [3, 3, 2] and by_blocks.predicted == whole.predicted and by_blocks.metrics == whole.metrics
    assert by_blocks.probability == pytest.approx(whole.probability)
