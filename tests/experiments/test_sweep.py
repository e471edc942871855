import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from coopcli.data.load import load_data
from coopcli.errors import CoopError
from coopcli.experiments import sweep as sweeping
from coopcli.experiments.grid import Cell, Grid, Plan, Result, Variant
from coopcli.experiments.sweep import sweep
from coopcli.learned.prompt import load_prompt
from coopcli.learning.recipe import Recipe

PLAN = Plan("a photo of a {}.", ("a photo of a {}.", "art of a {}."), device="cpu", views=2)
QUICK = Recipe(epochs=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("coopcli.experiments.experiment.paper_recipe", lambda shots, n_classes: QUICK)


def run(photos, tmp_path, cells, name="sweep", jobs=1, **more):
    load = partial(load_data, str(photos))
    return sweep(load(), load, PLAN, cells, tmp_path / name, tmp_path / "features", jobs, **more)


def test_a_sweep_keeps_each_cell_and_does_none_twice(mini, photos, tmp_path, monkeypatch):
    cells = Grid(("zeroshot", "ensemble", "coop"), ("mini",), (1, 2), (1, 2)).cells()
    seen = []
    results = run(photos, tmp_path, cells[:4], on_result=seen.append)
    assert [result.cell for result in results] == cells[:4] == [result.cell for result in seen]
    assert all(0 <= result.top1 <= 1 and result.fingerprint == mini.fingerprint for result in results)
    assert results[0].images == 18 and results[2].images == 18 - 3  # all, and those that were not drawn

    done = []
    true = sweeping.Laboratory.run
    monkeypatch.setattr(sweeping.Laboratory, "run", lambda self, cell, folder: (done.append(cell), true(self, cell, folder))[1])
    larger = run(photos, tmp_path, cells)
    assert done == cells[4:] and [result for result in larger if result.cell in cells[:4]] == results
    for cell in done:
        assert load_prompt(tmp_path / "sweep" / "cells" / cell.folder).training["seed"] == cell.seed


def test_a_damaged_result_is_done_again(photos, tmp_path):
    (cell,) = Grid(("zeroshot",), ("mini",), (), ()).cells()
    (first,) = run(photos, tmp_path, [cell])
    path = tmp_path / "sweep" / "cells" / cell.folder / "result.json"
    for damage in ("{", "[]", path.read_text().replace('"zeroshot"', '"ensemble"'), '{"cell": {}}'):
        path.write_text(damage)
        assert replace(run(photos, tmp_path, [cell])[0], peak_memory=0) == replace(first, peak_memory=0)


def test_too_few_images_leave_a_cell_out_and_not_the_grid(photos, tmp_path):
    results = run(photos, tmp_path, Grid(("coop",), ("mini",), (2, 6, 7), (1,)).cells())
    assert [result.top1 is None for result in results] == [False, True, True]
    assert "no image is left to test on" in results[1].note
    assert "3 of 3 classes have fewer than 7 train images" in results[2].note
    (photos / "red" / "5.png").unlink()
    (some,) = run(photos, tmp_path, [Cell("coop", "mini", 6, 2, Variant())], "other")
    assert some.top1 is None  # no green or blue image is left
    (some,) = run(photos, tmp_path, [Cell("coop", "mini", 2, 2, Variant(n_ctx=500))], "other")
    assert "leave no room" in some.note


def test_warnings_become_notes(photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "coopcli.experiments.experiment.paper_recipe", lambda *a: replace(QUICK, lr=1e7, warmup_epochs=0, optimizer="adam")
    )
    (result,) = run(photos, tmp_path, [Cell("coop", "mini", 2, 1, Variant())])
    assert "runs away" in result.note and not caplog.records


def test_processes_give_the_bytes_of_one(photos, tmp_path):
    """Without the quick recipe, which other processes do not see."""
    cells = Grid(("coop",), ("mini",), (1,), (1, 2), [Variant(n_ctx=2)]).cells()
    command = [sys.executable, "-m", "coopcli", "sweep", str(photos), "--model", "mini", "--shots", "1", "--seeds", "1,2"]
    command += ["--methods", "coop", "--context-length", "2", "--views", "2", "--no-plot", "--json"]
    prompts = {}
    for jobs in (1, 2):
        folder = tmp_path / f"jobs{jobs}"
        done = subprocess.run([*command, "-o", str(folder), "--jobs", str(jobs)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [row["seed"] for row in json.loads(done.stdout)["results"]] == [1, 2]
        prompts[jobs] = [(folder / "cells" / cell.folder / "prompt.safetensors").read_bytes() for cell in cells]
    assert prompts[1] == prompts[2]


def test_a_killed_sweep_leaves_no_process_and_goes_on(photos, tmp_path):
    command = [sys.executable, "-m", "coopcli", "sweep", str(photos), "--model", "mini", "--shots", "2", "--seeds", "1,2,3,4"]
    command += ["--methods", "zeroshot,coop", "--views", "2", "--no-plot", "--jobs", "2"]

    def start(name):
        return subprocess.Popen([*command, "-o", str(tmp_path / name)], stderr=subprocess.PIPE, start_new_session=True)

    whole = start("whole")
    assert whole.wait() == 0, whole.stderr.read()
    process = start("killed")
    while not list((tmp_path / "killed").glob("cells/coop*/result.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)  # ends when no process holds stderr any more
    again = start("killed")
    assert again.wait() == 0, again.stderr.read()
    for path in (tmp_path / "whole").glob("cells/coop*/prompt.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_worker_that_is_ended_from_outside_is_told(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "_do_in_worker", _end)
    with pytest.raises(CoopError, match="ended from outside"):
        run(photos, tmp_path, Grid(("coop",), ("mini",), (1,), (1, 2)).cells(), jobs=2)
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]


def _end(cell: Cell, folder) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
