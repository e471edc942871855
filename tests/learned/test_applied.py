import oracle
import pytest
import torch
from samples import some_head, some_prompt

from coopcli.clip.prompts import ContextSettings, random_context
from coopcli.data.load import DataSet, ImageItem
from coopcli.errors import CoopError
from coopcli.learned.applied import check_backbone, classes_of, learned_features
from coopcli.learned.scores import evaluate_logits


def learned(mini, csc=False, names=("star", "ring", "heart")):
    how = ContextSettings(4, "end", csc)
    context = random_context(how, len(names), mini.text_encoder.width, seed=1)
    return some_prompt(context=context, settings=how, class_names=names, folders=names, fingerprint=mini.fingerprint)


def test_learned_features_for_other_classes(mini):
    prompt = learned(mini)
    names = ["moon", "star"]
    expected = oracle.text_features(mini.model, mini.tokenizer, names, prompt.context)
    assert (learned_features(mini, prompt, names) - expected).abs().max() < 1e-5


def test_class_specific_contexts_go_with_their_names(mini):
    prompt = learned(mini, csc=True)
    expected = oracle.text_features(mini.model, mini.tokenizer, ["heart", "star"], prompt.context[[2, 0]])
    assert (learned_features(mini, prompt, ["heart", "star"]) - expected).abs().max() < 1e-5
    with pytest.raises(CoopError, match='none for "moon" and 1 more'):
        learned_features(mini, prompt, ["star", "moon", "sun"])


def test_the_prompt_names_the_folders():
    prompt = some_prompt(class_names=("Annual Crop Land", "sea or lake"), folders=("AnnualCrop", "SeaLake"))

    def data(folders, names=None):
        return DataSet("d", tuple(names or folders), tuple(folders), {})

    assert classes_of(prompt, data(["SeaLake", "AnnualCrop"])) == ("sea or lake", "Annual Crop Land")
    assert classes_of(prompt, data(["0", "1"], ["Sea_or_Lake", "River"])) == ("sea or lake", "River")


def test_a_prompt_of_another_model_is_refused(mini):
    check_backbone(learned(mini), mini)
    with pytest.raises(CoopError, match=r'learned on "mini".*"mini" .* is another model'):
        check_backbone(some_prompt(), mini)


def test_vectors_of_another_width_are_refused(mini):
    with pytest.raises(CoopError, match=f'vectors of 8 numbers; those of "mini" have {mini.token_width}'):
        check_backbone(some_prompt(fingerprint=mini.fingerprint), mini)
    with pytest.raises(CoopError, match=f'vectors of 4 numbers; those of "mini" have {mini.feature_width}'):
        check_backbone(some_head(fingerprint=mini.fingerprint), mini)


def test_two_classes_of_one_name_keep_their_own_contexts_and_scores(mini):
    names = ("missile", "sun", "missile")
    prompt = learned(mini, csc=True, names=names)
    expected = oracle.text_features(mini.model, mini.tokenizer, names, prompt.context)
    assert (learned_features(mini, prompt, names) - expected).abs().max() < 1e-5
    items = [ImageItem(str(k), k, bytes) for k in range(3)]
    told = evaluate_logits(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]), names, items).as_dict()
    assert told["per_class"] == {"missile": 1.0, "sun": 1.0, "missile (2)": 0.0} and told["class_names"] == list(names)
