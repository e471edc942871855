import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fuzz_prompts
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from samples import some_prompt

from coopcli.errors import CoopError, UsageError
from coopcli.learned.prompt import load_prompt
from coopcli.learned.safefile import MAX_FILE

VALID = [fuzz_prompts.content_of(learned) for learned in fuzz_prompts.EXAMPLES]
ATTACKS = fuzz_prompts.attacks()


@pytest.mark.parametrize("csc", [False, True])
def test_what_is_saved_is_loaded(tmp_path, csc):
    before = some_prompt(csc)
    before.save(str(tmp_path / "prompt.safetensors"))  # a path or its text
    for path in (tmp_path / "prompt.safetensors", tmp_path):
        after = load_prompt(path)
        assert torch.equal(after.context, before.context)
        assert {**vars(after), "context": 0} == {**vars(before), "context": 0}


def test_equal_prompts_are_equal_bytes_across_processes(tmp_path):
    code = "import sys; from pathlib import Path; from samples import some_prompt; some_prompt().save(Path(sys.argv[1]))"
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, cwd=Path(__file__).parents[1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_plain_safetensors(tmp_path):
    some_prompt().save(tmp_path / "p")
    with safe_open(tmp_path / "p", "pt") as file:
        assert list(file.keys()) == ["context"]
        assert json.loads(file.metadata()["coop"])["class_names"] == ["Stern ☆", "ring"]


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no prompt file"):
        load_prompt(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_another_file(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UsageError, match="is not a prompt file of coop"):
        load_prompt(tmp_path / "p")


def rewritten(tmp_path, tensor=None, **changes):
    some_prompt().save(tmp_path / "p")
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


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_is_refused(tmp_path, name):
    (tmp_path / "p").write_bytes(ATTACKS[name])
    assert fuzz_prompts.verdict(tmp_path / "p") == "refused"


def test_a_damaged_file_is_valid_or_refused(tmp_path):
    outcomes: Counter[str] = Counter()

    @settings(max_examples=1500, derandomize=True, database=None)
    @given(st.integers(0, 2**63))
    def damage_and_load(seed):
        choose = random.Random(seed)
        (tmp_path / "p").write_bytes(fuzz_prompts.damaged(choose, choose.choice(VALID)))
        outcomes[fuzz_prompts.verdict(tmp_path / "p")] += 1

    damage_and_load()
    assert outcomes["loaded"] > 50 and outcomes["refused"] > 500


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "metadata").write_bytes(ATTACKS["prompt: huge metadata"])
    fuzz_prompts.write_huge(tmp_path / "numbers")
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    for name, reason in (("metadata", "header of 1048"), ("numbers", f"file of {MAX_FILE // 10**6}")):
        with pytest.raises(CoopError, match=reason):
            load_prompt(tmp_path / name)


def test_reading_takes_no_more_memory_than_the_file_and_a_bound(tmp_path):
    """Many small values make the most of a header; a large context or cache is kept once."""
    large = some_prompt(context=torch.zeros(4, 2**23))  # 128 MiB
    large.save(tmp_path / "large")
    head = fuzz_prompts.example_head()
    keys = dict(keys=torch.zeros(2**15, 2**10), values=torch.zeros(2**15, dtype=torch.long))  # 128 MiB
    replace(head, weights=torch.zeros(2, 2**10), **keys).save(tmp_path / "cache")
    (tmp_path / "much").write_bytes(ATTACKS["prompt: much small JSON"])
    code = (
        "import sys; from pathlib import Path; import fuzz_prompts as tool; tool.forget_peak(); start = tool.peak()\n"
        "try: tool.load_learned(Path(sys.argv[1]))\n"
        "except tool.CoopError: print('refused')\n"
        "else: print('loaded')\n"
        "print(tool.peak() - start)"
    )
    for name, outcome, bound in (("large", "loaded", 128 + 32), ("cache", "loaded", 128 + 32), ("much", "refused", 200)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], cwd=Path(fuzz_prompts.__file__).parent, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        told, more = done.stdout.split()
        assert told == outcome and float(more) < bound


def test_what_is_refused_is_named(tmp_path):
    reasons = {
        "n_ctx": {"context": {"n_ctx": 0, "position": "end", "csc": False}},
        "class_names": {"class_names": []},
        "class_names, model": {"class_names": "ab", "model": 1},
        "2 classes and 1 folders": {"folders": ["a"]},
    }
    for reason, changes in reasons.items():
        with pytest.raises(CoopError, match="context" if reason == "n_ctx" else reason):
            load_prompt(rewritten(tmp_path, **changes))


def test_a_newer_version_is_named_without_what_the_file_makes_of_it(tmp_path):
    with pytest.raises(CoopError, match="newer coop") as error:
        load_prompt(rewritten(tmp_path, format_version=2, coop_version="9\n\x1b[2J" + "9" * 10_000))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_folders_and_links_that_lead_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name in ("loop", "pipe", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError):
            load_prompt(tmp_path / name)
