import oracle
import pytest
import torch
import torch.nn.functional as F

from coopcli.clip import class_features
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import context_features, hand_written_features
from coopcli.clip.prompts import ContextSettings, random_context


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


@pytest.mark.parametrize("csc", [False, True])
def test_rows_that_are_encoded_at_once_are_bounded(mini, monkeypatch, csc):
    """Also where each class has a context of its own, which shares no row with another's."""
    names = [f"{adjective} {noun}" for adjective in ("old", "red", "small", "new") for noun in ("ring", "star", "moon", "sun")]
    settings = ContextSettings(16, "end", csc)
    context = random_context(settings, len(names), mini.token_width, 1)
    whole, rows, lay_out = context_features(mini, context, settings, names), [], type(mini.text_encoder).lay_out

    def counted(self, prompts, *given):
        layouts = lay_out(self, prompts, *given)
        rows.extend(layout.tree.n_nodes for layout in layouts)
        return layouts

    monkeypatch.setattr(class_features, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(type(mini.text_encoder), "lay_out", counted)
    parts = context_features(mini, context, settings, names)
    assert max(rows) <= 100 and len(rows) == (4 if csc else 2)
    assert (parts - whole).abs().max() < 1e-6
