import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from coopcli.learning.checkpoint import _digest, load_checkpoint, save_checkpoint
from coopcli.learning.training import EpochLog, TrainingState

STATE = TrainingState(
    torch.randn(4, 8),
    {"momentum_buffer": torch.randn(4, 8), "step": torch.tensor(7.0)},
    (EpochLog(0, 50, 1e-5, 2.5, 0.25), EpochLog(1, 50, 0.002, 1.0 / 3, 0.5)),
)
START = TrainingState(torch.zeros(4, 8))


def test_what_is_read_is_what_was_written(tmp_path):
    save_checkpoint(tmp_path / "c", STATE, "this task")
    state = load_checkpoint(tmp_path / "c", "this task", START, 50)
    assert torch.equal(state.context, STATE.context)
    assert state.optimizer.keys() == STATE.optimizer.keys()
    assert all(torch.equal(state.optimizer[name], value) for name, value in STATE.optimizer.items())
    assert state.log == STATE.log


def test_none_or_another_tasks_starts_anew(tmp_path, caplog):
    assert load_checkpoint(tmp_path / "c", "this task", START, 50) is None and not caplog.text
    save_checkpoint(tmp_path / "c", STATE, "another task")
    assert load_checkpoint(tmp_path / "c", "this task", START, 50) is None
    assert "belongs to other images" in caplog.text


def refused(path, caplog):
    caplog.clear()
    assert load_checkpoint(path, "this task", START, 50) is None
    assert "is damaged; training starts from the beginning" in caplog.text


def test_a_damaged_one_starts_anew(tmp_path, caplog):
    save_checkpoint(tmp_path / "c", STATE, "this task")
    whole = (tmp_path / "c").read_bytes()
    for damaged in (
        b"",
        whole[:100],
        whole[:-1],
        b"\xff" * len(whole),
        whole.replace(b'\\"log\\"', b'\\"bog\\"'),
        whole.replace(b"loss", b"lost"),
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole + b"more",
        b"PK" + whole,
        (2**60).to_bytes(8, "little") + whole[8:],
    ):
        assert damaged != whole
        (tmp_path / "c").write_bytes(damaged)
        refused(tmp_path / "c", caplog)


def test_a_folder_or_a_file_of_another_kind_starts_anew(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", caplog)
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle")
    refused(tmp_path / "pickle", caplog)
    for number, entry in enumerate(("null", "[]", "3", "{}", '"text"', "{" * 10**5, '{"task": "this task", "log": []}')):
        (tmp_path / str(number)).write_bytes(save({"context": torch.zeros(4, 8)}, metadata={"coop": entry}))
        refused(tmp_path / str(number), caplog)


@pytest.mark.parametrize(
    "change",
    [
        {"context": torch.zeros(4, 7)}, {"context": torch.zeros(32)}, {"context": torch.zeros(4, 8, dtype=torch.float64)},
        {"context": torch.full((4, 8), torch.nan)}, {"context": torch.zeros(4, 8).bfloat16()},
        {"optimizer": {"momentum_buffer": torch.zeros(4, 9)}}, {"optimizer": {"step": torch.tensor(torch.inf)}},
        {"optimizer": {"step": torch.tensor(3)}}, {"log": ()}, {"log": STATE.log[1:]}, {"log": STATE.log[::-1]},
        {"log": (EpochLog(0, 49, 1e-5, 2.5, 0.25),)}, {"log": (EpochLog(0, 50, 1e-5, float("nan"), 0.25),)},
        {"log": (EpochLog(0, 50, 1e-5, "2", 0.25),)}, {"log": tuple(EpochLog(e, 50, 0.1, 0.1, 0.1) for e in range(51))},
    ],
    ids=str,
)  # fmt: skip
def test_one_that_is_whole_but_cannot_be_this_tasks(tmp_path, caplog, change):
    state = replace(STATE, **change)
    tensors = {"context": state.context, **{f"optimizer.{name}": value for name, value in state.optimizer.items()}}
    sha256 = "" if state.context.dtype == torch.bfloat16 else _digest(tensors)
    header = {"task": "this task", "sha256": sha256, "log": [vars(epoch) for epoch in state.log]}
    (tmp_path / "c").write_bytes(save(tensors, metadata={"coop": json.dumps(header)}))
    refused(tmp_path / "c", caplog)
