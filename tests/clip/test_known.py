"""A model that has not changed is not loaded before it is used; one that has changed in any way is loaded and hashed again."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ran, write_picture
from safetensors.torch import load_file, save_file

from coopcli.clip import backbone as module
from coopcli.clip import known
from coopcli.clip.backbone import CLIP, load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.frozen_linear import FrozenLinear
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.errors import CoopError

packs = FrozenLinear(torch.ones(8, 8), None).packed  # else the stock image tower runs
QUICK = ["--model", "mini", "--epochs", "1", "--views", "1"]


@pytest.fixture
def cache():
    return FeatureCache(None)


@pytest.fixture
def folder(copy_of_mini, monkeypatch):
    """A model's folder whose files count as settled though they are new."""
    monkeypatch.setattr(known, "SETTLED", 0)
    return copy_of_mini


def load(folder, cache):
    return load_backbone(str(folder), device="cpu", cache=cache)


def test_facts_are_those_of_the_loaded_model(folder, cache, mini):
    first, second = load(folder, cache), load(folder, cache)
    assert first.loaded and not second.loaded
    for name in ("name", "revision", "fingerprint", "device", "dtype", "model_key", *known.Facts.__dataclass_fields__):
        assert getattr(second, name) == getattr(first, name), name
    assert second.fingerprint == mini.fingerprint and not second.loaded
    pixels = torch.randint(0, 255, (2, 3, mini.image_size, mini.image_size), dtype=torch.uint8)
    assert torch.equal(second.encode_images(pixels), mini.encode_images(pixels))
    assert len(second.tokenizer) == len(mini.tokenizer) and second.loaded


def test_a_known_model_can_be_copied_before_and_after_its_first_use(folder, cache):
    load(folder, cache)
    clip = load(folder, cache)
    copy = pickle.loads(pickle.dumps(clip))
    assert not copy.loaded and torch.equal(copy.text_encoder.token_embedding, clip.text_encoder.token_embedding)
    assert pickle.loads(pickle.dumps(clip)).loaded
    assert not CLIP(str(folder), device="cpu", cache=cache).loaded
    with pytest.raises(AttributeError, match="nonsense"):
        clip.nonsense  # noqa: B018


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_weights_at_the_same_time(folder):
    """As tools do that keep the times of files: only the time of the last change of anything tells."""
    before = (folder / "model.safetensors").stat()
    time.sleep(0.02)
    other_weights(folder)
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / "model.safetensors").stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def other_preprocessing(folder):
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))


def other_activation(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"gelu"', '"relu"'))


@pytest.mark.parametrize("change", [other_weights, other_weights_at_the_same_time, other_preprocessing, other_activation])
def test_a_changed_model_is_hashed_again(folder, cache, mini, change):
    load(folder, cache)
    change(folder)
    changed = load(folder, cache)
    assert changed.loaded and changed.fingerprint != mini.fingerprint
    assert changed.fingerprint == load_backbone(str(folder)).fingerprint


def test_a_new_file_a_missing_one_and_another_place_are_looked_at(folder, cache, monkeypatch):
    load(folder, cache)
    (folder / "notes.txt").write_text("new")
    assert load(folder, cache).loaded and not load(folder, cache).loaded
    (folder / "notes.txt").unlink()
    assert not load(folder, cache).loaded  # as it was first
    assert load(folder.rename(folder.with_name("moved")), cache).loaded


def test_software_and_trust_are_part_of_what_is_known(folder, cache, monkeypatch):
    load(folder, cache)
    assert load_backbone(str(folder), device="cpu", allow_pickle=True, cache=cache).loaded
    monkeypatch.setattr(known, "version", lambda package: "0")
    assert load(folder, cache).loaded


def test_what_changed_a_moment_ago_is_not_trusted(copy_of_mini, cache, monkeypatch):
    monkeypatch.setattr(known, "SETTLED", 3600)  # loading may take seconds here
    assert load(copy_of_mini, cache).loaded and load(copy_of_mini, cache).loaded


def test_a_change_while_the_model_loads_is_not_kept(folder, cache, monkeypatch):
    loading = module.load_hf_clip

    def load_slowly(*arguments):
        parts = loading(*arguments)
        other_preprocessing(folder)
        return parts

    monkeypatch.setattr(module, "load_hf_clip", load_slowly)
    load(folder, cache)
    monkeypatch.undo()
    assert load(folder, cache).loaded


def test_a_change_before_the_first_use_is_an_error(folder, cache):
    load(folder, cache)
    clip = load(folder, cache)
    other_weights(folder)
    with pytest.raises(CoopError, match="changed while coop was running"):
        clip.text_encoder  # noqa: B018
    with pytest.raises(CoopError, match="changed while coop was running"):
        clip.image_encoder  # noqa: B018


def test_folders_of_unclear_contents_are_always_loaded(folder, cache, tmp_path):
    assert known.find_files(str(folder), None).state
    (folder / "shards").symlink_to(tmp_path)
    assert known.find_files(str(folder), None).state is None
    (folder / "shards").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert known.find_files(str(folder), None).state is None
    assert known.find_files(str(tmp_path / "nowhere"), None) is None
    assert known.find_files("open_clip:RN50/openai", None) is None
    (tmp_path / "empty").mkdir()
    assert known.find_files(str(tmp_path / "empty"), None).state is None


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commits = tmp_path / "models--some--clip", ("a" * 40, "b" * 40)
    for commit in commits:
        shutil.copytree(MINI_FOLDER, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commits[0])
    first, second = load_backbone("some/clip", cache=cache), load_backbone("some/clip", cache=cache)
    assert first.loaded and not second.loaded and first.revision == second.revision == commits[0]
    assert not load_backbone("some/clip", commits[0], cache=cache).loaded
    (place / "refs" / "main").write_text(commits[1])
    third = load_backbone("some/clip", cache=cache)
    assert third.loaded and third.revision == commits[1]
    assert known.find_files("some/other", commits[0]) is None


def test_facts_and_other_contents_survive_the_cache(tmp_path):
    for cache in (FeatureCache(None), FeatureCache(tmp_path / "facts")):
        for content in ("é", [], {"a": [1.5, None, 1e-300]}, [["x", 1]] * 100, 0):
            cache.remember(["about", 1], content)
            assert cache.recall(["about", 1]) == content
        assert cache.recall(["about", 2]) is None
    assert FeatureCache(tmp_path / "facts").recall(["about", 1]) == 0


def test_warm_commands_import_no_transformers(coop, photos, tmp_path):
    """With features and facts in the cache, none of these commands needs a tower or a tokenizer."""
    ran(coop("fit", photos, *QUICK, "--shots", "2", "-o", "run"))
    commands = [
        ["zeroshot", str(photos), "--model", "mini"],
        ["ensemble", str(photos), "--model", "mini"],
        ["eval", "run", str(photos)],
        ["interpret", "run"],
        ["predict", "run", str(photos)],
    ]
    first = "".join(ran(coop(*command)) for command in commands)
    new = str(tmp_path / "new.png")
    write_picture(Path(new))
    if packs:
        commands.append(["predict", "run", new])
    code = f"""
import sys
from coopcli.cli.app import app
for command in {commands}:
    app(command, standalone_mode=False)
print([name for name in ("transformers", "tokenizers", "datasets") if name in sys.modules], file=sys.stderr)
"""
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert again.stderr.splitlines()[-1] == "[]"
    assert again.stdout == first + ("".join(ran(coop(*commands[-1]))) if packs else "")
