import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import failed, ran
from hypothesis import given, settings
from hypothesis import strategies as st

from coopcli.errors import UsageError
from coopcli.learned import interpret
from coopcli.learned.interpret import encode_words, movements, nearest_tokens, token_spacing

QUICK = ["--model", "mini", "--shots", "2", "--epochs", "2", "--views", "2", "--context-length", "3"]


def distance(a, b, metric):
    """One pair, by the definition."""
    a, b = a.double(), b.double()
    if metric == "cosine":
        return float(1 - a @ b / (a @ a).sqrt() / (b @ b).sqrt())
    return float(((a - b) ** 2).sum() ** 0.5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("among", [None, [7, 300, 12, 40, 41, 42, 43]])
def test_nearest_are_the_closest_rows(tokenizer, metric, among, monkeypatch):
    monkeypatch.setattr(interpret, "ROWS", 2)  # vectors at a time
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(tokenizer), 6, generator=generator)
    context = torch.randn(3, 6, generator=generator)
    found = nearest_tokens(context, table, tokenizer, 5, metric, among)
    for vector, near in zip(context, found, strict=True):
        distances = {i: distance(vector, table[i], metric) for i in among or range(len(table))}
        order = sorted(distances, key=distances.__getitem__)[:5]
        assert [token.token_id for token in near] == order
        assert all(abs(token.distance - distances[i]) < 1e-6 for token, i in zip(near, order, strict=True))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("far", [0.0, 3.0, 1e5])
def test_what_the_rough_search_cannot_tell_apart_is_found_exactly(tokenizer, metric, far, monkeypatch):
    """Tokens whose distances from a vector differ by less than float32 can tell; with one to spare, it takes wrong ones."""
    monkeypatch.setattr(interpret, "SPARE", 1)
    generator = torch.Generator().manual_seed(1)
    table = 1 + 1e-7 * torch.randn(len(tokenizer), 6, generator=generator, dtype=torch.double)
    context = 1 + 1e-7 * torch.randn(20, 6, generator=generator, dtype=torch.double) + far
    for vector, near in zip(context, nearest_tokens(context, table, tokenizer, 3, metric), strict=True):
        away = (
            (table - vector).norm(dim=1)
            if metric == "euclidean"
            else 1 - F.normalize(table, dim=1) @ F.normalize(vector, dim=0)
        )
        assert [token.distance for token in near] == pytest.approx(away.sort().values[:3].tolist(), rel=1e-9, abs=1e-15)


def test_a_tokens_own_vector_is_nearest_at_distance_zero(tokenizer):
    table = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    (near,) = nearest_tokens(table[300:301], table, tokenizer, top=1)
    assert (near[0].token_id, near[0].distance) == (300, 0.0)
    (near,) = nearest_tokens(3 * table[300:301], table, tokenizer, 1, "cosine")
    assert near[0].token_id == 300 and 0 <= near[0].distance < 1e-12


@settings(max_examples=30)
@given(
    st.integers(2, 40), st.sampled_from(["euclidean", "cosine"]), st.sampled_from([1, 3, 7]), st.integers(0, 1000),
    st.booleans(),
)  # fmt: skip
def test_spacing_is_each_tokens_distance_to_its_nearest_other(n, metric, rows, seed, sampled):
    table = torch.randn(n + 3, 4, generator=torch.Generator().manual_seed(seed))
    among = list(range(1, n + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret, "ROWS", rows)
        patch.setattr(interpret, "SAMPLE", 5 if sampled else 100)
        spacing = token_spacing(table, metric, among)
    chosen = among[:: -(-n // 5)] if sampled else among
    slow = sorted(min(distance(table[i], table[j], metric) for j in among if j != i) for i in chosen)
    assert spacing.distances.tolist() == pytest.approx(slow, abs=1e-5)
    assert len(spacing.distances) <= (5 if sampled else 100)
    assert spacing.share_below(slow[-1] + 1e-4) == 1 and spacing.share_below(slow[0] - 1e-4) == 0
    assert slow[0] - 1e-5 <= spacing.median <= slow[-1] + 1e-5


def test_spacing_tells_a_vector_near_a_token_from_one_far_off(mini):
    table = mini.text_encoder.token_embedding
    spacing = token_spacing(table)
    near, far = table[400] + 0.001, table[400] + 5
    shares = [
        spacing.share_below(vector[0].distance)
        for vector in nearest_tokens(torch.stack([near, far]), table, mini.tokenizer, top=1)
    ]
    assert shares[0] < 0.05 and shares[1] == 1


def test_movements_are_the_gains_in_similarity_beyond_the_common_one():
    generator = torch.Generator().manual_seed(0)
    learned, hand_written, words = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (4, 4, 20))
    names = [f"w{i}" for i in range(20)]
    common, classes = movements(learned, hand_written, names, words, top=6)

    def gain(k, w):
        return float(learned[k] @ words[w] - hand_written[k] @ words[w])

    means = {names[w]: sum(gain(k, w) for k in range(4)) / 4 for w in range(20)}
    expected = sorted((pair for pair in means.items() if pair[1] > 0), key=lambda pair: -pair[1])[:6]
    assert common == [(word, pytest.approx(value, abs=1e-5)) for word, value in expected]
    for k, moved in enumerate(classes):
        assert moved.similarity == pytest.approx(float(learned[k] @ hand_written[k]), abs=1e-5)
        own = {name: gain(k, w) - means[name] for w, name in enumerate(names)}
        expected = sorted((pair for pair in own.items() if pair[1] > 0), key=lambda pair: -pair[1])[:6]
        assert moved.towards == [(word, pytest.approx(value, abs=1e-5)) for word, value in expected]


def test_a_vocabulary_without_whole_words_is_refused(mini, monkeypatch):
    monkeypatch.setattr(interpret, "whole_words", lambda tokenizer: {})
    with pytest.raises(UsageError, match="no whole words; use --pieces"):
        interpret.lexicon_of(mini, words=True)


def test_what_does_not_move_moves_towards_no_word():
    features = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    common, classes = movements(features, features, ["a", "b"], features[:2], top=2)
    assert common == [] and all(moved.towards == [] for moved in classes)


def test_words_encoded_in_parts_are_those_encoded_at_once(mini, monkeypatch):
    words = ["red", "green", "circle", "square", "photo"]
    at_once = encode_words(mini, words)
    monkeypatch.setattr(interpret, "WORDS", 2)
    told = []
    in_parts = encode_words(mini, words, on_progress=lambda *n: told.append(n))
    assert torch.allclose(in_parts, at_once, atol=1e-5) and told == [(2, 5), (4, 5), (5, 5)]


@pytest.fixture
def seeds(coop, photos):
    for seed in (1, 2):
        ran(coop("fit", photos, *QUICK, "--seed", seed, "-o", f"run{seed}"))
    ran(coop("fit", photos, *QUICK, "--csc", "-o", "csc"))


def test_command(coop, seeds):
    told = json.loads(ran(coop("interpret", "run1", "--top", "2", "--json")))
    (context,) = told["contexts"]
    assert context["class"] is None and [len(vector) for vector in context["vectors"]] == [2] * 3
    assert len(context["farther_than"]) == 3 and all(0 <= share <= 1 for share in context["farther_than"])
    assert told["spacing"]["median"] > 0 and "moved" not in told
    table = ran(coop("interpret", "run1"))
    rows = [line for line in table.splitlines() if re.match(r" +\d ", line)]
    assert len(rows) == 3 and all(re.search(r"\d %$", row.strip()) for row in rows) and "nearest words" in table
    assert "nearest tokens" in ran(coop("interpret", "run1", "--pieces"))

    words = json.loads(ran(coop("interpret", "run1", "--metric", "cosine", "--json")))
    assert all(token["token"].isalpha() and 0 <= token["distance"] <= 2
               for vector in words["contexts"][0]["vectors"] for token in vector)  # fmt: skip
    pieces = json.loads(ran(coop("interpret", "run1", "--pieces", "--top", "100", "--metric", "cosine", "--json")))
    assert any(not token["token"].isalpha() for vector in pieces["contexts"][0]["vectors"] for token in vector)
    assert words["spacing"]["tokens"] < pieces["spacing"]["tokens"] or words["spacing"] != pieces["spacing"]


def test_command_on_several_prompts(coop, seeds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = json.loads(ran(coop("interpret", "run1", "run2", "csc", "--json")))
    assert [prompt["prompt"] for prompt in told["prompts"]] == ["run1", "run2", "csc"]
    assert [len(prompt["contexts"]) for prompt in told["prompts"]] == [1, 1, 3]
    assert [context["class"] for context in told["prompts"][2]["contexts"]] == ["blue", "green", "red"]
    alone = json.loads(ran(coop("interpret", "csc", "--top", "1", "--json")))
    assert alone["contexts"] == told["prompts"][2]["contexts"]

    table = ran(coop("interpret", "run1", "run2", "csc"))
    heading = table.splitlines()[0]
    assert "run1" in heading and "run2" in heading and "csc" not in heading
    assert table.splitlines().count("green") == 1
    first = [told["prompts"][k]["contexts"][0]["vectors"][0][0] for k in (0, 1)]
    row = next(line for line in table.splitlines() if line.startswith("     1"))
    assert all(f"{token['token']} ({token['distance']:.2f})" in row for token in first)


def test_command_moved(coop, seeds):
    told = json.loads(ran(coop("interpret", "run1", "--moved", "--top", "3", "--json")))["moved"]
    assert [row["class"] for row in told["classes"]] == ["blue", "green", "red"]
    assert all(-1 <= row["similarity"] <= 1 and len(row["towards"]) <= 3 for row in told["classes"])
    text = ran(coop("interpret", "run1", "csc", "--moved"))
    assert text.count("all together") == 2 and text.count("moved towards") == 2
    few = movements(*(torch.eye(3)[order] for order in ([0, 1, 2], [1, 2, 0])), ["a", "b", "c"], torch.eye(3), 2, 1)
    assert len(few[1]) == 1 and few[0] == movements(torch.eye(3), torch.eye(3)[[1, 2, 0]], ["a", "b", "c"], torch.eye(3), 2)[0]
    failed(coop("interpret", "run1", "--moved", "--template", "a photo"), 2, '"a photo"')
    failed(coop("interpret", "run1", "--template", "a photo of a {}."), 2, "--moved")


def test_of_very_many_classes_the_first_are_shown(coop, seeds, monkeypatch):
    whole = ran(coop("interpret", "csc", "--moved"))
    monkeypatch.setattr("coopcli.cli.interpret.LONG_TABLE", 2)
    monkeypatch.setattr("coopcli.cli.interpret.SHOWN_CLASSES", 2)
    text = ran(coop("interpret", "csc", "--moved"))
    assert "the first 2 of 3 classes; --json gives all" in text
    assert "red" in whole.splitlines() and "red" not in text.splitlines()
    assert re.search("^red  ", whole, re.MULTILINE) and not re.search("^red  ", text, re.MULTILINE)
    assert text.splitlines()[:8] == whole.splitlines()[:8]
    contexts = json.loads(ran(coop("interpret", "csc", "--json", "--moved")))
    assert [len(contexts["contexts"]), len(contexts["moved"]["classes"])] == [3, 3]
    assert "the first" not in ran(coop("interpret", "run1"))  # one context for all


def test_tokens_of_very_many_vectors_are_found_anew_and_the_same(coop, seeds, monkeypatch):
    kept = ran(coop("interpret", "csc", "--json"))
    monkeypatch.setattr("coopcli.learned.interpret.MOST_KEPT", 8)  # of 9 vectors
    before = ran(coop("cache", "--json"))
    assert ran(coop("interpret", "csc", "--json", "--top", "5")) == kept
    monkeypatch.setattr("coopcli.learned.interpret.nearest_tokens", lambda *given: pytest.fail("found anew"))
    with pytest.raises(pytest.fail.Exception):
        coop("interpret", "csc", "--json")
    assert ran(coop("cache", "--json")) == before


def test_heads_are_refused(coop, photos):
    ran(coop("sweep", photos, "--model", "mini", "--methods", "linear-probe", "--shots", "1", "--seeds", "1", "-o", "s"))
    (cell,) = Path("s/cells").iterdir()
    failed(coop("interpret", cell), 2, "linear-probe")
