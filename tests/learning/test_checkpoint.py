import torch

from coopcli.learning.checkpoint import load_checkpoint, save_checkpoint
from coopcli.learning.training import EpochLog, TrainingState

STATE = TrainingState(
    torch.randn(4, 8),
    {"momentum_buffer": torch.randn(4, 8), "step": torch.tensor(7.0)},
    (EpochLog(0, 50, 1e-5, 2.5, 0.25), EpochLog(1, 50, 0.002, 1.0 / 3, 0.5)),
    class_chunk=20,
)


def test_what_is_read_is_what_was_written(tmp_path):
    save_checkpoint(tmp_path / "c", STATE, "this task")
    state = load_checkpoint(tmp_path / "c", "this task")
    assert torch.equal(state.context, STATE.context)
    assert state.optimizer.keys() == STATE.optimizer.keys()
    assert all(torch.equal(state.optimizer[name], value) for name, value in STATE.optimizer.items())
    assert (state.log, state.class_chunk) == (STATE.log, 20)


def test_none_or_another_tasks_starts_anew(tmp_path, caplog):
    assert load_checkpoint(tmp_path / "c", "this task") is None and not caplog.text
    save_checkpoint(tmp_path / "c", STATE, "another task")
    assert load_checkpoint(tmp_path / "c", "this task") is None
    assert "other images" in caplog.text


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
    ):
        caplog.clear()
        assert damaged != whole
        (tmp_path / "c").write_bytes(damaged)
        assert load_checkpoint(tmp_path / "c", "this task") is None
        assert "is damaged; training starts anew" in caplog.text
