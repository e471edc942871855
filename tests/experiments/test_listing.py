import json
import os
import shutil

import pytest
from conftest import COLOURS, failed, ran, write_picture

from coopcli.cli.app import app
from coopcli.experiments.listing import list_runs
from coopcli.experiments.run_folder import read_run
from coopcli.learning.checkpoint import save_checkpoint
from coopcli.learning.training import EpochLog, TrainingState

FIT = ["--model", "mini", "--shots", "2", "--epochs", "2", "--views", "2", "--context-length", "2", "--no-cache"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a class-specific run and a sweep."""
    root = tmp_path_factory.mktemp("listing")
    for k, name in enumerate(COLOURS):
        for i in range(4):
            write_picture(root / "toy" / name / f"{i}.png", COLOURS[name], seed=10 * k + i)
    for name, more in (("a", []), ("below/b", ["--csc", "--init", "a photo of"])):
        length = [] if more else ["--context-length", "2"]
        app(["fit", str(root / "toy"), *FIT[:-3], *length, "--no-cache", *more, "-o", str(root / "runs" / name)],
            standalone_mode=False)  # fmt: skip
    app(["sweep", str(root / "toy"), "--model", "mini", "--methods", "zeroshot,tip-adapter", "--shots", "1,2", "--seeds", "1",
         "--views", "2", "--no-plot", "--no-cache", "-o", str(root / "runs" / "s")], standalone_mode=False)  # fmt: skip
    return root / "runs"


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "coop-runs")


def by_name(folder):
    return {os.path.relpath(row.folder, folder): row for row in list_runs(folder)}


def test_runs_and_sweeps_are_found(runs):
    rows = by_name(runs)
    assert set(rows) == {"a", "below/b", "s"}  # and none of the sweep's experiments
    run = read_run(runs / "a")
    assert (rows["a"].accuracy, rows["a"].gain) == (run.learned.metrics.top1, run.gain)
    assert rows["a"].variant == "M = 2, end, paper recipe" and (rows["a"].shots, rows["a"].state) == ("2", "done")
    assert rows["below/b"].variant == 'M = 3, end, class-specific, from "a photo of", paper recipe'
    results = json.loads((runs / "s" / "results.json").read_text())["summary"]
    best = max((row for row in results if row["method"] == "tip-adapter"), key=lambda row: row["top1"])
    assert rows["s"].variant == "best: tip-adapter" and rows["s"].accuracy == best["top1"]
    assert rows["s"].gain == best["top1"] - next(row["top1"] for row in results if row["method"] == "zeroshot")
    assert [row.date for row in list_runs(runs)] == sorted((row.date for row in rows.values()), reverse=True)


def test_what_is_not_done(runs):
    for name in ("prompt.safetensors", "metrics.json"):
        (runs / "a" / name).unlink()
    assert by_name(runs)["a"].state == "not trained yet" and by_name(runs)["a"].accuracy is None
    assert by_name(runs)["a"].variant == "M = 2, end, paper recipe"
    context = read_run(runs / "below/b").prompt.context
    log = tuple(EpochLog(epoch, 400, 0.1, 1.0, 0.5) for epoch in range(166))
    save_checkpoint(runs / "a" / "checkpoint.safetensors", TrainingState(context, log=log), "task")
    assert by_name(runs)["a"].state == "epoch 166 of 400"
    (runs / "a" / "checkpoint.safetensors").write_bytes(b"x")
    assert by_name(runs)["a"].state == "damaged checkpoint"
    (runs / "s" / "results.json").unlink()
    assert by_name(runs)["s"].state == "3 experiments done"


@pytest.mark.parametrize(
    ("file", "content", "state"),
    [
        ("a/settings.toml", "= x", "damaged settings"),
        ("a/metrics.json", "{", "damaged results"),
        ("a/prompt.safetensors", "x", "damaged results"),
        ("s/results.json", '{"summary": 3}', "damaged results"),
    ],
)
def test_damage_is_a_state(runs, file, content, state):
    (runs / file).write_text(content)
    assert by_name(runs)[file.partition("/")[0]].state == state


def test_the_command(coop, runs, tmp_path):
    out = ran(coop("list"))
    assert "top-1 %" in out and "below/b" in out.replace("\n", "")
    told = json.loads(ran(coop("list", runs / "below", "--json")))
    assert [row["state"] for row in told["runs"]] == ["done"] and told["command"] == "list"
    (tmp_path / "empty").mkdir()
    code, out, err = coop("list", "empty")
    assert (code, out) == (0, "") and "no runs" in err
    failed(coop("list", "nowhere"), 2, "nowhere", "coop list FOLDER")
