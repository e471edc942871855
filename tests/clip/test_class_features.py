import oracle
import pytest
import torch
import torch.nn.functional as F

from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import hand_written_features


def test_ensemble_is_the_mean_of_normalised_features_normalised_again(mini):
    templates, names = ["a photo of a {}.", "{}", "itap of the {}."], ["star", "red_ring"]
    each = [oracle.template_features(mini.model, mini.tokenizer, template, names) for template in templates]
    expected = F.normalize(torch.stack(each).mean(0), dim=-1)
    assert (hand_written_features(mini, templates, names) - expected).abs().max() < 1e-5


def test_hand_written_features_are_encoded_once(mini, tmp_path, monkeypatch):
    templates, names = ["a photo of a {}.", "{}"], ["star", "ring"]
    first = hand_written_features(mini, templates, names, FeatureCache(tmp_path))
    other = hand_written_features(mini, templates, names[::-1], FeatureCache(tmp_path))
    monkeypatch.setattr(type(mini.text_encoder), "__call__", lambda *a: pytest.fail("the text tower ran again"))
    assert torch.equal(hand_written_features(mini, templates, names, FeatureCache(tmp_path)), first)
    assert torch.equal(hand_written_features(mini, templates, names[::-1], FeatureCache(tmp_path)), other)
    assert (other - first.flip(0)).abs().max() < 1e-6
