import pytest
import torch

from coopcli.clip.prompts import ContextSettings, context_prompts, hand_written_prompts, random_context, tokenize, word_context
from coopcli.errors import CoopError, UsageError


def body(prompt):
    return list(prompt[1:-1])


def test_positions(tokenizer):
    name, stop = tokenize(tokenizer, "red star"), tokenize(tokenizer, ".")
    c = [-1, -2, -3, -4, -5]
    made = {p: body(context_prompts(tokenizer, ContextSettings(5, p), ["red_star"])[0]) for p in ("end", "middle", "front")}
    assert made == {"end": c + name + stop, "middle": c[:2] + name + c[2:] + stop, "front": name + c + stop}
    assert len({len(prompt) for prompt in made.values()}) == 1


@pytest.mark.parametrize(("csc", "shape"), [(False, (5, 7)), (True, (3, 5, 7))])
def test_the_shape_of_a_context(csc, shape):
    how = ContextSettings(5, csc=csc)
    assert how.shape(3, 7) == random_context(how, 3, 7, seed=1).shape == shape


def test_each_class_has_its_own_rows_when_class_specific(tokenizer):
    first, second = context_prompts(tokenizer, ContextSettings(2, csc=True), ["star", "ring"])
    assert [i for i in first if i < 0] == [-1, -2]
    assert [i for i in second if i < 0] == [-3, -4]


def test_prompts_begin_and_end_with_the_special_tokens(tokenizer):
    for prompt in context_prompts(tokenizer, ContextSettings(2), ["star"]) + hand_written_prompts(tokenizer, "{}", ["star"]):
        assert (prompt[0], prompt[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_a_names_last_bracket_merges_with_the_stop_at_the_end_only(tokenizer):
    name = "kite (bird of prey)"
    end, middle = (body(context_prompts(tokenizer, ContextSettings(2, p), [name])[0]) for p in ("end", "middle"))
    assert end == [-1, -2, *tokenize(tokenizer, name + ".")]
    assert middle == [-1, *tokenize(tokenizer, name), -2, *tokenize(tokenizer, ".")]


def test_hand_written_prompt_is_the_tokenizers_own(tokenizer):
    assert (
        list(hand_written_prompts(tokenizer, "a photo of a {}.", ["red_star"])[0])
        == tokenizer("a photo of a red star.").input_ids
    )


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_template_needs_one_place(tokenizer, template):
    with pytest.raises(UsageError, match="exactly once"):
        hand_written_prompts(tokenizer, template, ["star"])


def test_braces_in_a_name_are_only_text(tokenizer):
    assert hand_written_prompts(tokenizer, "a {}.", ["{x}"])


@pytest.mark.parametrize("make", [
    lambda t, names: context_prompts(t, ContextSettings(16), names),
    lambda t, names: hand_written_prompts(t, "a photo of a {}.", names),
])  # fmt: skip
def test_a_name_too_long_is_named(tokenizer, make):
    long = "star " * 80
    with pytest.raises(CoopError, match="is too long") as error:
        make(tokenizer, ["ring", long])
    assert long in str(error.value)


def test_a_context_that_cannot_be(tokenizer):
    for wrong in ({"n_ctx": 0}, {"position": "up"}):
        with pytest.raises(UsageError, match=r"vector|position"):
            ContextSettings(**wrong)
    with pytest.raises(UsageError, match=r"80 context vectors \(--context-length\) leave no room"):
        context_prompts(tokenizer, ContextSettings(80), ["star"])


def test_a_name_that_just_fits(tokenizer):
    names = ["star " * (77 - 16 - 3)]
    assert len(context_prompts(tokenizer, ContextSettings(16), names)[0]) == 77


def test_random_context_is_small_noise_apart_for_each_class():
    context = random_context(ContextSettings(16, csc=True), 5, 512, seed=1)
    assert context.shape == (5, 16, 512) and context.dtype == torch.float32
    assert abs(float(context.mean())) < 1e-3 and abs(float(context.std()) - 0.02) < 1e-3
    assert not torch.equal(context[0], context[1])
    assert torch.equal(context, random_context(ContextSettings(16, csc=True), 5, 512, seed=1))
    assert not torch.equal(context, random_context(ContextSettings(16, csc=True), 5, 512, seed=2))


def test_word_context_counts_tokens_not_words(tokenizer):
    table = torch.arange(len(tokenizer)).float()[:, None].expand(-1, 3)
    words = "xylophone of a"
    context = word_context(tokenizer, table, words, 2, csc=False)
    assert context[:, 0].tolist() == tokenize(tokenizer, words)
    assert len(context) > 3
    specific = word_context(tokenizer, table, words, 2, csc=True)
    assert torch.equal(specific[0], context) and torch.equal(specific[1], context)
    with pytest.raises(UsageError):
        word_context(tokenizer, table, " ", 2, csc=False)
