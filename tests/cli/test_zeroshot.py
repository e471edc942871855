"""`coop zeroshot` and `coop ensemble`: templates, splits, models."""

import json
import os
import shutil
import subprocess
import sys

import torch
from conftest import failed, ran
from safetensors.torch import load_file

from coopcli.clip.hf_clip import MINI_FOLDER


def test_zeroshot_and_ensemble(coop, photos):
    told = json.loads(ran(coop("zeroshot", photos, "--model", "mini", "--template", "a {} background.", "--json")))
    assert told["top1"] > 0.9 and told["templates"] == ["a {} background."]
    assert len(json.loads(ran(coop("ensemble", photos, "--model", "mini", "--json")))["templates"]) == 80
    named = ran(coop("ensemble", photos, "--model", "mini", "--templates", "eurosat", "--template", "{}", "--json"))
    assert len(json.loads(named)["templates"]) == 4
    own = ran(coop("ensemble", photos, "--model", "mini", "--template", "{}", "--template", "a {}", "--json"))
    assert json.loads(own)["templates"] == ["{}", "a {}"]
    assert '"{} wall"' in ran(coop("zeroshot", photos, "--model", "mini", "--template", "{} wall"))


def test_splits(coop, split_photos):
    def images(*options):
        return json.loads(ran(coop("zeroshot", split_photos, "--model", "mini", "--json", *options)))["n"]

    assert (images(), images("--split", "train"), images("--split", "val"), images("--split", "all")) == (9, 12, 6, 27)


def test_pickled_weights_are_read_only_when_allowed(coop, photos, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(MINI_FOLDER, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    failed(coop("zeroshot", photos, "--model", folder), 1, "--allow-pickle-weights")
    ran(coop("zeroshot", photos, "--model", folder, "--allow-pickle-weights"))


def test_offline_without_the_model_is_one_line_at_once(photos):
    done = subprocess.run(
        [sys.executable, "-m", "coopcli", "zeroshot", str(photos)], capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    assert "--model mini" in done.stderr
