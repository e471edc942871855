"""The token tree against the stock text tower over 77 positions."""

import copy

import oracle
import pytest
import torch
from conftest import tiny_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from coopcli.clip.layouts import TokenTree
from coopcli.clip.prompts import ContextSettings, context_prompts, hand_written_prompts, random_context, word_context
from coopcli.clip.text_encoder import TextEncoder

# 1 to 12 tokens, shared beginnings, one name that is the beginning of another, a name ending in punctuation
NAMES = [
    "star", "star shape", "red star", "kite (bird of prey)", "small red star on a blue background", "annual_crop",
    "q", "a photo of a photo of a photo of a photo", "xylophone",
]  # fmt: skip


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 4, 5, 16])
@pytest.mark.parametrize("init", ["random", "words"])
def test_features_and_gradients_are_the_stock_towers(tiny_model, tiny_encoder, tokenizer, position, csc, n_ctx, init):
    how = ContextSettings(n_ctx, position, csc)
    if init == "random":
        context = random_context(how, len(NAMES), tiny_encoder.width, seed=3)
    else:
        words = " ".join(("a photo of a " * 4).split()[:n_ctx])
        context = word_context(tokenizer, tiny_encoder.token_embedding, words, len(NAMES), csc)
        assert context.shape[-2] == n_ctx
    weights = torch.randn(len(NAMES), 24, generator=torch.Generator().manual_seed(1))
    mine, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()

    features = tiny_encoder.encode(context_prompts(tokenizer, how, NAMES), mine)
    expected = oracle.text_features(tiny_model, tokenizer, NAMES, theirs, position)
    (features * weights).sum().backward()
    (expected * weights).sum().backward()

    assert (features - expected).abs().max() < 1e-5
    assert relative(mine.grad, theirs.grad) < 1e-4


@pytest.mark.parametrize("template", ["a photo of a {}.", "{}", "{} in a photo of many things", "itap of my {}."])
def test_hand_written_prompts_are_the_stock_models(tiny_model, tiny_encoder, tokenizer, template):
    features = tiny_encoder.encode(hand_written_prompts(tokenizer, template, NAMES))
    assert (features - oracle.template_features(tiny_model, tokenizer, template, NAMES)).abs().max() < 1e-5


@pytest.mark.parametrize("csc", [False, True])
def test_chunks_change_neither_features_nor_gradients(tiny_encoder, tokenizer, csc):
    how = ContextSettings(4, "middle", csc)
    context = random_context(how, len(NAMES), tiny_encoder.width, seed=3)
    whole, parts = context.clone().requires_grad_(), context.clone().requires_grad_()
    prompts = context_prompts(tokenizer, how, NAMES)
    a, b = tiny_encoder.encode(prompts, whole), tiny_encoder.encode(prompts, parts, chunk=2)
    a[:, 0].sum().backward()
    b[:, 0].sum().backward()
    assert (a - b).abs().max() < 1e-6
    assert relative(parts.grad, whole.grad) < 1e-5


def test_the_chunk_follows_the_number_of_nodes_and_not_the_memory(tiny_encoder, tokenizer, monkeypatch):
    prompts = context_prompts(tokenizer, ContextSettings(4), NAMES)
    n_nodes = TokenTree(prompts).n_nodes
    for available in (0, 1 << 19, 1 << 40):
        monkeypatch.setattr("coopcli.clip.text_encoder.free_memory", lambda device, available=available: available)
        chunks = []
        for nodes in (n_nodes // 3, n_nodes - 1, n_nodes, 4096):
            monkeypatch.setattr("coopcli.clip.text_encoder.CHUNK_NODES", nodes)
            chunks.append(tiny_encoder.fixed_chunk(prompts))
        assert chunks == [-(-len(NAMES) // 4), -(-len(NAMES) // 2), 0, 0]


def test_little_memory_means_recomputation(tiny_encoder, tokenizer, monkeypatch):
    layouts = tiny_encoder.lay_out(context_prompts(tokenizer, ContextSettings(4), NAMES), 2)
    assert tiny_encoder.fitting_recomputation(layouts) == "nothing"
    needed = [layout.tree.n_nodes * 3 * 15 * 64 * 4 for layout in layouts]
    for available, expected in ((0, "layers"), (max(needed) - 1, "layers"), (max(needed), "chunks"), (sum(needed), "nothing")):
        monkeypatch.setattr("coopcli.clip.text_encoder.free_memory", lambda device, available=available: 2 * available)
        assert tiny_encoder.fitting_recomputation(layouts) == expected


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
@pytest.mark.parametrize(("width", "heads", "layers"), [(32, 1, 1), (48, 6, 2), (128, 2, 5)])
def test_any_activation_width_depth_and_head_count(tokenizer, activation, width, heads, layers):
    model = tiny_clip(tokenizer, activation, width, heads, layers)
    context = random_context(ContextSettings(4), len(NAMES), width, seed=3)
    mine, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()
    features = TextEncoder(model).encode(context_prompts(tokenizer, ContextSettings(4), NAMES), mine)
    expected = oracle.text_features(model, tokenizer, NAMES, theirs)
    features[:, :3].sum().backward()
    expected[:, :3].sum().backward()
    assert (features - expected).abs().max() < 1e-5
    assert relative(mine.grad, theirs.grad) < 1e-4


def test_every_distinct_prefix_is_one_node(tokenizer):
    prompts = context_prompts(tokenizer, ContextSettings(16), NAMES)
    prefixes = {prompt[:i] for prompt in prompts for i in range(1, len(prompt) + 1)}
    assert TokenTree(prompts).n_nodes == len(prefixes)


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-4, 5), min_size=1, max_size=60).map(tuple), min_size=1, max_size=40))
def test_each_row_sees_its_own_prefix_and_nothing_else(bodies):
    prompts = [(7, *body, 8) for body in bodies]  # SOS and EOS occur nowhere else: no prompt is another's beginning
    tree = TokenTree(prompts)
    blocks, size = tree.visible.shape[0], tree.visible.shape[2]
    assert blocks * size - tree.n_nodes < blocks
    for prompt, leaf in zip(prompts, tree.leaves[tree.leaf_of].tolist(), strict=True):
        block, row = divmod(leaf, size)
        keys = tree.path[block].tolist() + list(range(block * size, (block + 1) * size))
        seen = sorted(key for key, visible in zip(keys, tree.visible[block, 0, row].tolist(), strict=True) if visible)
        assert tuple(tree.rows[seen].tolist()) == prompt
        assert tree.depth[seen].tolist() == list(range(len(prompt)))


@pytest.mark.parametrize("n_nodes", [1, 2, 31, 33, 47, 49, 1056, 1089, 1122, 1155])
def test_every_block_holds_a_node(n_nodes):
    tree = TokenTree([(7,)] if n_nodes == 1 else [(7, i) for i in range(n_nodes - 1)])
    blocks, size = tree.visible.shape[0], tree.visible.shape[2]
    assert tree.n_nodes == n_nodes and (blocks - 1) * size < n_nodes <= blocks * size


@pytest.mark.same_bytes
def test_duplicate_prompts_share_one_leaf(tiny_encoder, tokenizer):
    features = tiny_encoder.encode(hand_written_prompts(tokenizer, "a {}.", ["star", "ring", "star"]))
    assert torch.equal(features[0], features[2])
    assert not torch.allclose(features[0], features[1])


def test_context_stays_float32_under_a_bfloat16_tower(tiny_model, tokenizer):
    encoder = TextEncoder(copy.deepcopy(tiny_model).bfloat16())
    context = random_context(ContextSettings(4), 2, encoder.width, seed=1).requires_grad_()
    features = encoder.encode(context_prompts(tokenizer, ContextSettings(4), ["star", "ring"]), context)
    features[0, 0].backward()
    assert features.dtype == context.grad.dtype == torch.float32
    exact = TextEncoder(tiny_model).encode(context_prompts(tokenizer, ContextSettings(4), ["star", "ring"]), context)
    assert (features - exact).abs().max() < 0.05
