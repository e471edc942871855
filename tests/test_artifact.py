import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coopcli.artifact import LearnedPrompt, load_prompt, write_atomically
from coopcli.errors import CoopError, UsageError
from coopcli.prompts import ContextSettings


def prompt(csc=False, **changes):
    context = torch.randn((2, 4, 8) if csc else (4, 8), generator=torch.Generator().manual_seed(0))
    fields = dict(
        context=context, settings=ContextSettings(4, "middle", csc), class_names=("Stern ☆", "ring"), folders=("s", "r"),
        model="mini", revision=None, fingerprint="f" * 32, training={"shots": 16, "seed": 1},
    )  # fmt: skip
    return LearnedPrompt(**(fields | changes))


@pytest.mark.parametrize("csc", [False, True])
def test_what_is_saved_is_loaded(tmp_path, csc):
    before = prompt(csc)
    before.save(tmp_path / "prompt.safetensors")
    for path in (tmp_path / "prompt.safetensors", tmp_path):
        after = load_prompt(path)
        assert torch.equal(after.context, before.context)
        assert {**vars(after), "context": 0} == {**vars(before), "context": 0}


def test_equal_prompts_are_equal_bytes_across_processes(tmp_path):
    code = "import sys; from pathlib import Path; from test_artifact import prompt; prompt().save(Path(sys.argv[1]))"
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, cwd=Path(__file__).parent)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_plain_safetensors(tmp_path):
    prompt().save(tmp_path / "p")
    with safe_open(tmp_path / "p", "pt") as file:
        assert list(file.keys()) == ["context"]
        assert json.loads(file.metadata()["coop"])["class_names"] == ["Stern ☆", "ring"]


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no prompt file"):
        load_prompt(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_another_file(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UsageError, match="is no prompt file of coop"):
        load_prompt(tmp_path / "p")


def rewritten(tmp_path, tensor=None, **changes):
    prompt().save(tmp_path / "p")
    with safe_open(tmp_path / "p", "pt") as file:
        header, kept = json.loads(file.metadata()["coop"]), file.get_tensor("context")
    header = {key: value for key, value in (header | changes).items() if value != "gone"}
    save_file({"context": kept if tensor is None else tensor}, tmp_path / "p", metadata={"coop": json.dumps(header)})
    return tmp_path / "p"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 99}, "newer coop"),
        ({"class_names": "gone"}, "lacks or garbles"),
        ({"context": {"n_ctx": 4, "what": 1}}, "lacks or garbles"),
        ({"context": {"n_ctx": 5, "position": "end", "csc": False}}, "says otherwise"),
        ({"context": {"n_ctx": 4, "position": "end", "csc": True}}, "says otherwise"),
    ],
)
def test_a_header_that_contradicts(tmp_path, changes, reason):
    with pytest.raises(CoopError, match=reason):
        load_prompt(rewritten(tmp_path, **changes))


@pytest.mark.parametrize("context", [torch.full((4, 8), torch.nan), torch.zeros(4, 8, dtype=torch.float16), torch.zeros(8)])
def test_a_context_that_cannot_be(tmp_path, context):
    with pytest.raises(CoopError):
        load_prompt(rewritten(tmp_path, tensor=context))


def test_a_write_that_fails_leaves_what_was(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CoopError, match="No space left"):
        write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
