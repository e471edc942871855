import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ran
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.experiments.trackers import epoch_numbers, final_numbers, tracked
from coopcli.learning.fit import Watch, fit
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import EpochLog


def test_numbers():
    assert epoch_numbers(EpochLog(3, 10, 0.002, 1.5, 0.25)) == {"train/loss": 1.5, "train/accuracy": 0.25, "train/lr": 0.002}
    evaluation = SimpleNamespace(metrics=SimpleNamespace(top1=0.5, macro=0.25))
    assert final_numbers(SimpleNamespace(test=evaluation, hand_written=None)) == {"test/top1": 0.5, "test/macro": 0.25}
    assert final_numbers(SimpleNamespace(test=None, hand_written=None)) == {}


def curves(folder):
    """Every number that TensorBoard would show: {name: [(step, number), ...]}."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_each_epoch_of_a_stopped_run_once(mini, split_photos, tmp_path):
    run, data = tmp_path / "run", load_data(str(split_photos))

    def learn(stop_after=None):
        with tracked(run, {}, True, None) as record:

            def on_epoch(log):
                record(epoch_numbers(log), log.epoch)
                if log.epoch == stop_after:
                    raise KeyboardInterrupt

            recipe = Recipe(epochs=5, views=2)
            result = fit(mini, data, recipe, ContextSettings(2), shots=2, watch=Watch(on_epoch=on_epoch), checkpoint=run / "c")
            record(final_numbers(result), len(result.log))
        return result

    with pytest.raises(KeyboardInterrupt):
        learn(stop_after=2)
    assert [step for step, _ in curves(run / "tensorboard")["train/loss"]] == [0, 1, 2]
    result = learn()
    shown = curves(run / "tensorboard")
    assert shown["train/loss"] == [(log.epoch, pytest.approx(log.loss)) for log in result.log] and len(result.log) == 5
    assert shown["train/lr"] == [(log.epoch, pytest.approx(log.lr)) for log in result.log]
    assert shown["test/top1"] == [(5, pytest.approx(result.test.metrics.top1))]
    assert shown["hand_written/macro"] == [(5, pytest.approx(result.hand_written.metrics.macro))]
    (run / "c").unlink()
    learn()  # once more from the start
    assert {name: len(points) for name, points in curves(run / "tensorboard").items()} == {
        "train/loss": 5, "train/accuracy": 5, "train/lr": 5, "test/top1": 1, "test/macro": 1, "hand_written/top1": 1,
        "hand_written/macro": 1,
    }  # fmt: skip


def test_nothing_is_written_before_the_first_number(tmp_path):
    with tracked(tmp_path / "run", {}, True, None):
        pass
    with tracked(tmp_path / "run", {}, False, None) as record:
        record({"train/loss": 1.0}, 0)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoopError, match="cannot be written"), tracked(tmp_path / "file", {}, True, None) as record:
        record({"train/loss": 1.0}, 0)


@pytest.mark.parametrize(("option", "needed"), [((True, None), "tensorboard"), ((False, "project"), "wandb")])
def test_what_is_not_installed_is_one_line(option, needed, tmp_path, monkeypatch):
    for name in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(UsageError, match=rf"^--{needed} needs the package {needed}.*coopcli\[{needed}\]"),
        tracked(tmp_path, {}, *option),
    ):
        pass


# ------------------------------------------------------------------------------------------- wandb and its like


@pytest.fixture
def library(monkeypatch):
    """Put a stand-in for wandb or trackio in place; the list of its calls is returned."""

    def put(name):
        calls = []
        module = ModuleType(name)
        run = SimpleNamespace(id="r1", log=lambda numbers, step: calls.append((step, numbers)))

        def init(*arguments, **settings):
            print("a run begins")
            calls.append(("init", *arguments, settings))
            return run

        module.login = lambda: calls.append("login")
        module.Settings = dict
        module.init, module.finish = init, lambda: calls.append("finish")
        for other in ("wandb", "trackio"):
            monkeypatch.setitem(sys.modules, other, module if other == name else None)
        return calls

    return put


def track(folder, steps):
    with tracked(folder, {"lr": 0.1}, False, "flowers") as record:
        for step in steps:
            record({"train/loss": 1.0 / (1 + step)}, step)


def test_wandb_goes_on_with_the_run_of_this_folder(library, tmp_path, capsys):
    calls = library("wandb")
    track(tmp_path / "run", [0, 1])
    begun = {
        "project": "flowers", "name": "run", "id": None, "resume": "allow", "dir": tmp_path / "run", "config": {"lr": 0.1},
        "settings": {"console": "off"},
    }  # fmt: skip
    assert calls == ["login", ("init", begun), (0, {"train/loss": 1.0}), (1, {"train/loss": 0.5}), "finish"]
    track(tmp_path / "run", [2])
    assert calls[5:] == ["login", ("init", begun | {"id": "r1"}), (2, {"train/loss": 1 / 3}), "finish"]
    track(tmp_path / "run", [0])
    assert calls[10] == ("init", begun)  # begun anew: another run
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("a run begins")


def test_trackio_where_there_is_no_wandb(library, tmp_path):
    calls = library("trackio")
    track(tmp_path / "run", [0])
    track(tmp_path / "run", [1])
    assert [call[-1]["resume"] for call in calls if call[0] == "init"] == ["never", "allow"]
    assert calls[0] == ("init", "flowers", "run", {"config": {"lr": 0.1}, "resume": "never"})


def test_what_they_raise_is_one_line(library, tmp_path, monkeypatch):
    library("wandb")

    def login():
        raise RuntimeError("no key\nfirst log in")

    monkeypatch.setattr(sys.modules["wandb"], "login", login)
    with pytest.raises(CoopError, match=r"^--wandb: no key$"):
        track(tmp_path / "run", [0])


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for steps in ([0, 1], [2], [0]):
        track(tmp_path / "run", steps)
        ids.append((tmp_path / "run" / "wandb" / "id").read_text())
        assert wandb.run is None
    assert ids[0] == ids[1] != ids[2]
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{ids[0]}.wandb"))


def test_fit_tells_tensorboard(coop, photos, tmp_path):
    fit = ["fit", photos, "--shots", "2", "--model", "mini", "--epochs", "3", "--views", "2", "-o", "run"]
    ran(coop(*fit, "--tensorboard"))
    told = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert curves(tmp_path / "run" / "tensorboard")["train/loss"] == [
        (log["epoch"], pytest.approx(log["loss"])) for log in told
    ]
