import csv
import json
from dataclasses import replace

import pytest
import torch
from conftest import COLOURS, failed, ran, write_picture

from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import image_features
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.experiments import transfer as module
from coopcli.experiments.transfer import Target, matrix, transfer
from coopcli.learned.applied import as_head
from coopcli.learned.scores import evaluate_logits
from coopcli.learning.fit import fit
from coopcli.learning.recipe import Recipe

QUICK = Recipe(epochs=3, views=2)


@pytest.fixture
def other(tmp_path):
    """Two of the three classes, drawn darker, and in another order of folders."""
    for k, name in enumerate(("red", "blue")):
        for i in range(4):
            write_picture(tmp_path / "other" / name / f"{i}.png", [c // 2 for c in COLOURS[name]], seed=500 + 10 * k + i)
    return tmp_path / "other"


@pytest.fixture
def prompts(mini, photos, tmp_path):
    made = []
    for seed, csc in ((1, False), (2, False), (1, True)):
        prompt = fit(mini, load_data(str(photos)), QUICK, ContextSettings(2, "end", csc), shots=2, seed=seed).prompt
        made.append((tmp_path / f"p{len(made)}.safetensors", prompt))
        prompt.save(made[-1][0])
    return made


def test_each_prompt_on_each_data_set(mini, photos, other, prompts):
    targets = [Target(load_data(str(folder)), "a photo of a {}.") for folder in (photos, other)]
    rows = transfer(prompts, targets, lambda one: mini, ["art of a {}."], FeatureCache(None))
    assert len(rows) == 2 * (2 + len(prompts)) and [row.source for row in rows[:2]] == ["zeroshot", "ensemble"]
    for (path, prompt), row in zip(prompts, [row for row in rows if row.file and row.dataset == "other"], strict=True):
        data = targets[1].dataset
        items = data.split("all")
        images = image_features(mini, items, FeatureCache(None))
        logits = as_head(mini, prompt, data.class_names).logits(images)
        assert row.top1 == evaluate_logits(logits, data.class_names, items).metrics.top1
        assert row.file == str(path) and row.seed == prompt.training["seed"] and row.images == 8
    table = matrix(rows)
    source = "photos, 2 shots, M = 2, end"
    assert list(table) == ["zeroshot", "ensemble", source, f"{source}, class-specific"]
    values = [row.top1 for row in rows if row.source == source and row.dataset == "other"]
    assert table[source]["other"].n == 2 and table[source]["other"].mean == pytest.approx(sum(values) / 2)


def test_a_class_specific_context_on_other_classes_is_a_note(mini, photos, prompts, tmp_path):
    write_picture(tmp_path / "strange" / "zebra" / "0.png")
    write_picture(tmp_path / "strange" / "red" / "0.png")
    targets = [Target(load_data(str(tmp_path / "strange")), "a photo of a {}.")]
    rows = transfer(prompts, targets, lambda one: mini, ["art of a {}."], FeatureCache(None))
    assert [bool(row.note) for row in rows] == [False] * 4 + [True] and "zebra" in rows[-1].note
    assert rows[-1].top1 is None and matrix(rows)[rows[-1].source]["strange"] is None


def test_the_command(coop, photos, other, prompts, tmp_path):
    files = [path for path, _ in prompts]
    out = ran(coop("transfer", *files, photos, other, "-o", "moved"))
    assert "photos, 2 shots, M = 2, end" in out and "±" in out and "zeroshot" in out
    rows = list(csv.DictReader((tmp_path / "moved" / "transfer.csv").open()))
    assert len(rows) == 10 and (tmp_path / "moved" / "transfer.png").exists()
    content = json.loads(ran(coop("transfer", files[0], other, "--json", "--no-plot", "-o", "plain")))
    assert content["command"] == "transfer" and {row["source"] for row in content["results"]} >= {"zeroshot", "ensemble"}
    odd = {"seed": [1], "shots": [2], "recipe": 3, "classes": {}, "init": [], "data": None, "few_shot_sha256": [4]}
    replace(prompts[0][1], training=odd).save(tmp_path / "odd.safetensors")
    assert len(json.loads(ran(coop("transfer", "odd.safetensors", other, "--json", "-o", "odd")))["results"]) == 3
    failed(coop("transfer", files[0]), 2, "no data set")
    failed(coop("transfer", photos, other), 2, "no prompt")
    assert coop("transfer", files[0], other, photos, "--template", "{}", "--template", "a {}", "--template", "b {}")[0] == 2


def test_another_model_is_refused(coop, other, prompts, tokenizer, tmp_path):
    path = tmp_path / "alien.safetensors"
    replace(prompts[0][1], fingerprint="f" * 32, context=torch.zeros(2, prompts[0][1].context.shape[-1])).save(path)
    failed(coop("transfer", path, other), 1, "is another model")


def test_names_given_for_the_data_come_first(mini, photos, prompts, monkeypatch):
    renamed = replace(load_data(str(photos)), class_names=("sky", "moss", "rose"))  # of the folders blue, green, red
    asked, head_of = [], as_head
    monkeypatch.setattr(module, "as_head", lambda *given: (asked.append(given[-1]), head_of(*given))[1])
    for given in (True, False):
        transfer(prompts[:1], [Target(renamed, "a photo of a {}.", given)], lambda one: mini, ["{}"], FeatureCache(None))
    assert asked == [("sky", "moss", "rose"), ("blue", "green", "red")]


def test_what_differs_is_never_one_row(mini, photos, prompts):
    training = prompts[1][1].training
    other = replace(prompts[1][1], training=training | {"recipe": training["recipe"] | {"views": 9, "lr": 0.5}})
    data = load_data(str(photos))
    learned = [*prompts[:2], (photos / "other", other)]
    rows = transfer(learned, [Target(data, "{}"), Target(data, "{}")], lambda one: mini, ["{}"], FeatureCache(None))
    names = [f"photos, 2 shots, M = 2, end, lr {lr}, views {views}" for lr, views in ((0.002, 2), (0.5, 9))]
    assert list(matrix(rows)) == ["zeroshot", "ensemble", *names]
    assert list(matrix(rows)["zeroshot"]) == ["photos", "photos (2)"] and matrix(rows)[names[0]]["photos"].n == 2
