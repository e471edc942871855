"""Tiny models and pictures that every test may use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as coop sets it: tests start processes that share the cores

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from coopcli import __main__
from coopcli.clip.backbone import load_backbone
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.clip.prompts import ContextSettings, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.learned.prompt import LearnedPrompt

hypothesis.settings.register_profile("coop", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("coop")
torch.set_num_threads(1)  # the models here are too small for more
# Started in the background (by `nohup`, or `&` in a script), pytest ignores these signals, and so would the processes that
# tests start to see what the signals do to them.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if _number and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


MAX_PIXELS = Image.MAX_IMAGE_PIXELS


def pytest_runtest_teardown() -> None:
    """Put back what `--max-pixels` of a command that ran in this process has set for all of it."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real images and lists in {SHARED_DATA}, which are not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test touches the user's cache."""
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MINI_FOLDER)


def tiny_clip(tokenizer, activation="quick_gelu", width=64, heads=4, layers=3, seed=0):
    torch.manual_seed(seed)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = dict(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, hidden_act=activation, **ends,
    )  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        hidden_act=activation,
    )  # fmt: skip
    # Larger weights than a fresh model's: small ones make all prompts alike and hide mistakes.
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, initializer_factor=4.0)
    return CLIPModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="session", params=["quick_gelu", "gelu"])
def tiny_model(request, tokenizer):
    return tiny_clip(tokenizer, request.param)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model):
    return TextEncoder(tiny_model)


@pytest.fixture(scope="session")
def mini():
    return load_backbone("mini", device="cpu")


@pytest.fixture
def copy_of_mini(tmp_path):
    return shutil.copytree(MINI_FOLDER, tmp_path / "copy")


def folder_of(model, folder, tokenizer, processor=None, **changes):
    """A model's folder as others publish theirs: their preprocessor, `changes` of the text tower's configuration."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    config |= {"text_config_dict": None, "vision_config_dict": None}  # as LAION's and OpenAI's have them
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or {"size": 32, "crop_size": 32}))
    return str(folder)


def write_picture(path, colour=(200, 30, 30), size=(40, 40), seed=0):
    """A noisy picture of about one colour."""
    noise = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}


def learned_prompt(clip, names=tuple(COLOURS), csc=False):
    """A prompt that learned nothing: its context is random."""
    settings = ContextSettings(n_ctx=4, csc=csc)
    context = random_context(settings, len(names), clip.text_encoder.width, seed=3)
    about = dict(class_names=names, folders=names, model=clip.name, revision=None, fingerprint=clip.fingerprint, training={})
    return LearnedPrompt(context, settings, **about)


@pytest.fixture
def photos(tmp_path):
    """A flat folder of three classes, six pictures each."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(6):
            write_picture(tmp_path / "photos" / name / f"{i}.png", colour, seed=10 * k + i)
    return tmp_path / "photos"


@pytest.fixture
def split_photos(tmp_path):
    """The same as train/, val/ and test/."""
    for part, (split, count) in enumerate({"train": 4, "val": 2, "test": 3}.items()):
        for k, (name, colour) in enumerate(COLOURS.items()):
            for i in range(count):
                write_picture(tmp_path / "split" / split / name / f"{i}.png", colour, seed=100 * part + 10 * k + i)
    return tmp_path / "split"


@pytest.fixture
def coop(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder through the real entry point: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["coop", *map(str, arguments)])
        capsys.readouterr()
        try:
            __main__.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return run


def ran(result):
    code, out, err = result
    assert code == 0, err
    return out


def failed(result, code, *words):
    """The command failed with this code and one line of error on stderr, after notes at most, that holds the words."""
    got, out, err = result
    assert got == code, (got, out, err)
    assert out == ""
    *notes, error = err.splitlines()
    assert error.startswith("coop: ") and all(note.startswith(("note: ", "data: ", "run: ")) for note in notes)
    for word in words:
        assert word in error
