from dataclasses import replace

import pytest
import torch

from coopcli.clip.prompts import ContextSettings
from coopcli.experiments.describe import describe, group_key, grouped, label, sources_of
from coopcli.experiments.grid import Cell, Variant
from coopcli.learned.head import Head
from coopcli.learned.prompt import LearnedPrompt

TRAINING = {"data": "toy", "classes": "all", "shots": 2, "seed": 1, "init": None, "recipe": {"lr": 0.002}, "dtype": "float32"}


def prompt(csc=False, fingerprint="f", names=("a", "b"), **training):
    settings = ContextSettings(4, "end", csc)
    origin = dict(class_names=names, folders=names, model="mini", revision=None, fingerprint=fingerprint)
    return LearnedPrompt(**origin, training=TRAINING | training, context=torch.zeros(4, 8), settings=settings)


def head(method="lp++", fingerprint="f", **training):
    origin = dict(class_names=("a", "b"), folders=("a", "b"), model="mini", revision=None, fingerprint=fingerprint)
    return Head(**origin, training=training, method=method, weights=torch.zeros(2, 8))


def test_what_was_learned_in_words():
    assert describe(prompt()) == "2 shots, M = 4, end"
    assert describe(prompt(csc=True, shots=None)) == "all images, M = 4, end, class-specific"
    assert describe(prompt(init="a photo of a", classes="base")) == '2 shots, M = 4, end, from "a photo of a", base classes'
    assert describe(head()) == "lp++" and describe(head(shots=1)) == "lp++, 1 shot"
    odd = replace(prompt(), training={"seed": [1], "shots": [2], "recipe": 3, "classes": {}, "init": ["x"]})
    assert describe(odd) and group_key(odd) and sources_of([odd], ["x"])


def test_seeds_are_one_group_and_nothing_else_is():
    same = [prompt(), prompt(seed=2, images=5, few_shot_sha256="x"), prompt(device="cuda", torch="9", class_chunk=1)]
    assert len({group_key(learned) for learned in same}) == 1
    other = [
        prompt(csc=True), prompt(fingerprint="g"), prompt(names=("a", "c")), prompt(shots=1), prompt(classes="base"),
        prompt(data="other"), prompt(init="a"), prompt(recipe={"lr": 1}), prompt(dtype="bfloat16"), head(), head("text-bias"),
    ]  # fmt: skip
    assert len({group_key(learned) for learned in [same[0], *other]}) == 1 + len(other)
    assert group_key(head(seed=1, C=2.0)) == group_key(head(seed=2, C=4.0, fingerprint="tuned anew"))


def test_names_are_one_for_all_seeds_and_for_nothing_else():
    assert sources_of([prompt(), prompt(seed=2)], ["x", "y"]) == ["toy, 2 shots, M = 4, end"] * 2
    assert sources_of([prompt(), prompt()], ["x", "y"]) == [f"toy, 2 shots, M = 4, end, {file}" for file in "xy"]
    assert sources_of([prompt(), prompt(seed=2, recipe={"lr": 1})], ["x", "y"]) == [
        f"toy, 2 shots, M = 4, end, lr {lr}" for lr in (0.002, 1)
    ]
    alike = sources_of([prompt(), prompt(seed=2, names=("a", "c"))], ["x", "y"])
    assert alike == [f"toy, 2 shots, M = 4, end, {file}" for file in "xy"]


def test_labels_say_what_differs():
    cells = [
        Cell("coop", model, 1, 1, Variant(n_ctx, init=init)) for model in "ab" for n_ctx in (None, 4) for init in (None, "a")
    ]
    assert label(cells[0], cells) == "coop, a, M = 16, random" and label(cells[3], cells) == 'coop, a, M = 4, from "a"'
    assert len({label(cell, cells) for cell in cells}) == 8
    variants = [Cell("coop", "a", 1, 1, Variant(csc=csc)) for csc in (False, True)]
    assert [label(cell, variants) for cell in variants] == ["coop, unified", "coop, class-specific"]
    assert label(variants[0], variants[:1]) == "coop"


@pytest.mark.parametrize(("values", "groups"), [([], {}), ([3, 1, 5], {1: [3, 1, 5]}), ([2, 3, 4], {0: [2, 4], 1: [3]})])
def test_groups_keep_the_order(values, groups):
    assert grouped(values, lambda n: n % 2) == groups and [*grouped(values, lambda n: n % 2)] == [*groups]
