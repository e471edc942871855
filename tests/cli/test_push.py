import json
import os
import subprocess
import sys

import pytest
from conftest import failed, learned_prompt, ran
from hub_server import ask_only, serving
from huggingface_hub import ModelCard, constants

from coopcli import Prompt
from coopcli.files import HEAD_FILE, PROMPT_FILE, TUNED_FOLDER


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        ask_only(server, monkeypatch, tmp_path)
        yield server


def test_from_fit_to_the_hub_and_back(coop, photos, hub, tmp_path, monkeypatch):
    ran(coop("fit", photos, "--shots", "2", "--model", "mini", "--epochs", "2", "--views", "2", "-o", "run"))
    here = json.loads(ran(coop("eval", "run", photos, "--json")))
    failed(coop("push", "run", "alice/flowers"), 2, "hf auth login", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    code, out, err = coop("push", "run", "alice/flowers", "--private", "--license", "mit")
    assert (code, out) == (0, f"{hub.url}/alice/flowers\n") and "coop eval alice/flowers DATA" in err
    repo = hub.repos["alice/flowers"]
    sent = repo.commits[repo.branches["main"]]
    assert repo.private and set(sent) == {".gitattributes", "README.md", PROMPT_FILE}
    assert sent[PROMPT_FILE] == (tmp_path / "run" / PROMPT_FILE).read_bytes()
    card = ModelCard(sent["README.md"].decode())
    assert card.data.license == "mit" and card.data.model_name == "alice/flowers" and "coop eval alice/flowers" in card.text
    assert (
        card.data.eval_results[0].metric_value == json.loads((tmp_path / "run" / "metrics.json").read_text())["learned"]["top1"]
    )

    # In a process of its own, by the variables alone.
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_alice"}
    done = subprocess.run(
        [sys.executable, "-m", "coopcli", "eval", "alice/flowers", str(photos), "--json"],
        env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    differ = {key for key in here if there.pop(key) != here[key]}
    assert differ <= {"prompt", "command_line", "peak_memory"} and not there

    told = json.loads(ran(coop("push", "run", "alice/flowers@second", "--message", "again", "--json")))
    assert told["url"] == f"{hub.url}/alice/flowers/tree/second" and told["commit"] == repo.branches["second"]
    assert told["files"] == ["README.md", PROMPT_FILE]
    assert list(Prompt.load("alice/flowers").classes_) == ["blue", "green", "red"]
    assert "nearest words" in ran(coop("interpret", "alice/flowers@second"))
    rows = json.loads(ran(coop("transfer", "alice/flowers", "alice/flowers@second", photos, "--no-plot", "--json")))["results"]
    assert [(row["file"], row["top1"]) for row in rows[2:]] == [(f"alice/flowers{at}", here["top1"]) for at in ("", "@second")]
    failed(coop("transfer", "alice/flowers@third", photos), 2, '"third"')
    failed(coop("transfer", "alice/weeds", photos), 2, "there is no prompt among")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert json.loads(ran(coop("eval", "alice/flowers@second", photos, "--json")))["top1"] == here["top1"]
    failed(coop("eval", "alice/flowers@third", photos), 1, '"alice/flowers"', "cannot be reached")


def test_what_is_no_prompt_is_not_pushed(coop, photos, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    failed(coop("push", "./nowhere", "alice/flowers"), 2, 'no prompt file "nowhere"')
    failed(coop("push", photos, "alice/flowers"), 2, "no prompt file")
    failed(coop("eval", "alice/flowers", photos), 2, '"alice/flowers" is neither a path here nor')
    assert not hub.repos


def test_a_file_of_any_name_is_found_again(coop, mini, photos, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    learned_prompt(mini).save(tmp_path / "model.pth.tar-50.safetensors")
    ran(coop("push", "model.pth.tar-50.safetensors", "alice/imported"))
    assert PROMPT_FILE in hub.repos["alice/imported"].commits[hub.repos["alice/imported"].branches["main"]]
    assert "top-1" in ran(coop("eval", "alice/imported", photos))


def test_a_fine_tuned_head_goes_with_its_model(coop, photos, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    one = ["--methods", "fine-tune", "--shots", "1", "--seeds", "1"]
    ran(coop("sweep", photos, "--model", "mini", *one, "--no-plot", "-o", "s"))
    (cell,) = (tmp_path / "s" / "cells").iterdir()
    for number, path in enumerate((cell, cell / HEAD_FILE)):
        told = json.loads(ran(coop("push", path, f"alice/tuned{number}", "--json")))
        assert told["files"][:2] == ["README.md", HEAD_FILE] and f"{TUNED_FOLDER}/model.safetensors" in told["files"]
        assert "top-1" in ran(coop("eval", f"alice/tuned{number}", photos))
