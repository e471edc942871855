"""Each family's text tower against the stock model, with the context put in by a hook on the token embedding."""

import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, tiny

from coopcli.clip.prompts import ContextSettings, context_prompts, hand_written_prompts, random_context, word_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.clip.tokens import ends_of, lower_case
from coopcli.clip.towers import feature_width, read_tower, token_width

NAMES = [
    "star", "star shape", "red star", "kite (bird of prey)", "small red star on a blue background", "annual_crop", "q",
    "very long name in many parts", "xyz",
]  # fmt: skip
FILLER = 7  # a plain token of all the tokenizers, in the places of the context


@cache
def ready(family):
    model, tokenizer, _ = tiny(family)
    if family == "siglip":
        lower_case(tokenizer)
    return model, tokenizer, TextEncoder(read_tower(model, tokenizer.pad_token_id))


def stock_features(family, prompts, context=None):
    """get_text_features on padded prompts, their context rows put in behind the token embedding; normalised."""
    model, tokenizer, encoder = ready(family)
    ids = [torch.tensor([max(token, 0) if token >= 0 else FILLER for token in prompt]) for prompt in prompts]
    length = encoder.max_length if family == "siglip" else max(map(len, ids)) + 2
    pad = tokenizer.pad_token_id
    padded = torch.stack([F.pad(row, (0, length - len(row)), value=pad) for row in ids])
    mask = (
        {}
        if family == "siglip"
        else {"attention_mask": (torch.arange(length) < torch.tensor([[len(row)] for row in ids])).long()}
    )

    def put_in(module, inputs, output):
        output = output.clone()
        for k, prompt in enumerate(prompts):
            for place, token in enumerate(prompt):
                if token < 0:
                    output[k, place] = context.reshape(-1, context.shape[-1])[-1 - token]
        return output

    table = next(m for n, m in model.text_model.named_modules() if n.endswith(("word_embeddings", "token_embedding")))
    handle = table.register_forward_hook(put_in)
    try:
        return F.normalize(model.get_text_features(input_ids=padded, **mask).pooler_output, dim=-1)
    finally:
        handle.remove()


def compare(family, encoder, how, context):
    """Largest difference of the features, and relative difference of the context's gradient."""
    _, tokenizer, true = ready(family)
    prompts = context_prompts(tokenizer, how, NAMES, true.max_length)
    weights = torch.randn(len(NAMES), true.feature_width, generator=torch.Generator().manual_seed(1))
    mine, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()
    features, expected = encoder.encode(prompts, mine), stock_features(family, prompts, theirs)
    (features * weights).sum().backward()
    (expected * weights).sum().backward()
    return (features - expected).abs().max().item(), ((mine.grad - theirs.grad).norm() / theirs.grad.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 4, 16])
def test_features_and_gradients_are_the_stock_towers(family, position, csc, n_ctx):
    _, _, encoder = ready(family)
    how = ContextSettings(n_ctx, position, csc)
    difference, gradient = compare(family, encoder, how, 10 * random_context(how, len(NAMES), encoder.width, seed=3))
    assert difference < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("csc", [False, True])
def test_a_context_of_words(family, csc):
    _, tokenizer, encoder = ready(family)
    context = word_context(tokenizer, encoder.token_embedding, "a photo of a", len(NAMES), csc)
    difference, gradient = compare(family, encoder, ContextSettings(context.shape[-2], "end", csc), context)
    assert difference < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", ["a photo of a {}.", "{}", "itap of my {}."])
def test_hand_written_prompts_are_the_stock_models(family, template):
    _, tokenizer, encoder = ready(family)
    prompts = hand_written_prompts(tokenizer, template, [*NAMES, "star"], encoder.max_length)
    features = encoder.encode(prompts)
    assert (features - stock_features(family, prompts)).abs().max() < 1e-5 and torch.equal(features[0], features[-1])
    texts = [template.replace("{}", name.replace("_", " ")) for name in [*NAMES, "star"]]
    assert [list(prompt) for prompt in prompts] == tokenizer(texts).input_ids


def off(rows):
    return rows + torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(2))


MUTATIONS = {
    "mask": lambda tower: dataclasses.replace(tower, causal=not tower.causal),
    "pool": lambda tower: dataclasses.replace(tower, causal=False, pool="last" if tower.pool == "first" else "first"),
    "token type": lambda tower: dataclasses.replace(tower, position_rows=off(tower.position_rows)),
    "position offset": lambda tower: dataclasses.replace(tower, position_rows=tower.position_rows.roll(1, 0)),
    "norms": lambda tower: dataclasses.replace(
        tower, layers=[dataclasses.replace(layer, pre_norm=not layer.pre_norm) for layer in tower.layers]
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_notices(family, mutation):
    how = ContextSettings(4)
    _, _, encoder = ready(family)
    wrong = TextEncoder(MUTATIONS[mutation](encoder.tower))
    assert compare(family, wrong, how, random_context(how, len(NAMES), encoder.width, seed=3))[0] > 1e-3


@pytest.mark.parametrize("fill", [None, 1, 5])
def test_the_comparison_notices_another_filling(fill):
    how = ContextSettings(4)
    _, _, encoder = ready("siglip")
    wrong = TextEncoder(dataclasses.replace(encoder.tower, fill=fill))
    assert encoder.tower.fill == 0
    assert compare("siglip", wrong, how, random_context(how, len(NAMES), encoder.width, seed=3))[0] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_ends(family):
    model, tokenizer, encoder = ready(family)
    begin, end = ends_of(tokenizer)
    assert (token_width(model), feature_width(model)) == (encoder.width, encoder.feature_width)
    assert (len(begin), len(end)) == ((0, 1) if family == "siglip" else (1, 1))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "metaclip_2"])
def test_bidirectional_towers_waste_no_row(family):
    _, tokenizer, encoder = ready(family)
    prompts = context_prompts(tokenizer, ContextSettings(4), [*NAMES, *NAMES], encoder.max_length)
    layout = encoder.lay_out(prompts)[0]
    full = encoder.max_length * len(NAMES) if family == "siglip" else sum(map(len, set(prompts)))
    assert len(layout.tree.rows) == full and len(layout.slots) == 4  # a context row enters the first layer once


def test_a_name_behind_a_context_is_tokenized_as_within_a_text():
    _, tokenizer, encoder = ready("siglip")
    inside = tokenizer("a red star").input_ids[1:]
    for position in ("end", "middle", "front"):
        prompt = context_prompts(tokenizer, ContextSettings(4, position), ["Red star"], encoder.max_length)[0]
        name = [token for token in prompt if token >= 0]
        assert name[:3] == (inside[1:4] if position == "front" else inside[:3])
