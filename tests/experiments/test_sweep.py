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
from conftest import write_picture

from coopcli.data.fewshot import draw_few_shot
from coopcli.data.load import load_data
from coopcli.errors import CoopError
from coopcli.experiments import sweep as sweeping
from coopcli.experiments.grid import Cell, Grid, Plan, Result, Variant
from coopcli.experiments.sweep import sweep
from coopcli.experiments.sweep_folder import read_result, write_result
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


def test_a_sweep_keeps_each_cell_and_does_none_twice(mini, split_photos, tmp_path, monkeypatch):
    cells = Grid(("zeroshot", "ensemble", "coop"), ("mini",), (1, 2), (1, 2)).cells()
    seen = []
    results = run(split_photos, tmp_path, cells[:4], on_result=seen.append)
    assert [result.cell for result in results] == cells[:4] and sorted(seen, key=results.index) == results
    assert all(0 <= result.top1 <= 1 and result.fingerprint == mini.fingerprint for result in results)

    done = []
    true = sweeping.Laboratory.run
    monkeypatch.setattr(sweeping.Laboratory, "run", lambda self, cell, *rest: (done.append(cell), true(self, cell, *rest))[1])
    larger = run(split_photos, tmp_path, cells)
    assert [cell.shots for cell in done] == [2, 2] and [result for result in larger if result.cell in cells[:4]] == results
    for cell in done:
        assert load_prompt(tmp_path / "sweep" / "cells" / cell.folder).training["seed"] == cell.seed


def test_long_experiments_come_first(photos, tmp_path, monkeypatch):
    """A long one at the end would leave other processes without work."""
    done = []
    monkeypatch.setattr(
        sweeping.Laboratory, "run", lambda self, cell, *rest: (done.append((cell.method, cell.shots)), Result(cell, 0.5))[1]
    )
    cells = Grid(("zeroshot", "coop", "lp++"), ("mini",), (1, None, 2), (1,)).cells()
    results = run(photos, tmp_path, cells)
    assert [result.cell for result in results] == cells
    coop, others = [("coop", shots) for shots in (None, 2, 1)], [("lp++", shots) for shots in (None, 2, 1)]
    assert done == [*coop, *others, ("zeroshot", 0)]


def test_what_a_cell_was_made_of_decides_whether_it_is_kept(photos, tmp_path, caplog):
    cells = Grid(("zeroshot", "coop"), ("mini",), (1,), (1,)).cells()

    def again(plan=PLAN):
        caplog.clear()
        load = partial(load_data, str(photos))
        results = sweep(load(), load, plan, cells, tmp_path / "sweep", tmp_path / "features", 1)
        return results, [record.getMessage() for record in caplog.records if " again: " in record.getMessage()]

    first, notes = again()
    assert not notes and again() == (first, [])
    drawn = json.loads((tmp_path / "sweep" / "cells" / cells[1].folder / "fewshot.json").read_text())["train"]
    tested = next(f"red/{i}.png" for i in range(6) if f"red/{i}.png" not in drawn)
    write_picture(photos / tested, (0, 0, 0))  # another image of the same name
    changed, notes = again()
    assert len(notes) == 1 and notes[0].startswith("testing 2 of 2 experiments")
    assert [result.tested_on for result in changed] != [result.tested_on for result in first]
    assert changed[1].seconds == first[1].seconds  # it has not learned again
    write_picture(photos / drawn[0], (0, 0, 0))
    _, notes = again()
    assert len(notes) == 1 and notes[0].startswith("doing 1 of 2 experiments")
    _, notes = again(replace(PLAN, template="art of a {}."))
    assert len(notes) == 1 and notes[0].startswith("doing 2 of 2 experiments")
    assert not again(replace(PLAN, template="art of a {}."))[1]


DAMAGE = {
    "truncated": lambda row: json.dumps(row)[:-20],
    "empty": lambda row: "",
    "a list": lambda row: "[]",
    "no text": lambda row: "\udcff",
    "deep": lambda row: "[" * 100_000,
    "no cell": lambda row: json.dumps({key: value for key, value in row.items() if key != "cell"}),
    "another cell": lambda row: json.dumps(row | {"cell": row["cell"] | {"method": "ensemble"}}),
    "no accuracy": lambda row: json.dumps({key: value for key, value in row.items() if key != "top1"}),
    "9350 %": lambda row: json.dumps(row | {"top1": 93.5}),
    "negative": lambda row: json.dumps(row | {"macro": -0.5}),
    "NaN": lambda row: json.dumps(row | {"top1": float("nan")}),
    "a text": lambda row: json.dumps(row | {"top1": "0.5"}),
    "true": lambda row: json.dumps(row | {"top1": True}),
    "no such share": lambda row: json.dumps(row | {"top1": 0.123456789}),
    "half an image": lambda row: json.dumps(row | {"images": 17.5}),
    "fewer than none": lambda row: json.dumps(row | {"parameters": -1}),
    "too many": lambda row: json.dumps(row | {"peak_memory": 10**400}),
    "without end": lambda row: json.dumps(row | {"seconds": float("inf")}),
    "a note of numbers": lambda row: json.dumps(row | {"note": [1]}),
    "versions of nothing": lambda row: json.dumps(row | {"versions": None}),
    "a stranger": lambda row: json.dumps(row | {"colour": "red"}),
}


def test_a_damaged_result_is_no_result(tmp_path):
    result = Result(Cell("zeroshot", "mini"), 0.5, 0.5, images=18, note="x", versions={"coop": "1"})
    write_result(tmp_path, result)
    path = tmp_path / "cells" / result.cell.folder / "result.json"
    row = json.loads(path.read_text())
    assert read_result(tmp_path, result.cell) == result
    for name, damage in DAMAGE.items():
        path.write_bytes(damage(row).encode("utf-8", "surrogateescape"))
        assert read_result(tmp_path, result.cell) is None, name


def test_a_damaged_result_is_done_again(photos, tmp_path):
    (cell,) = Grid(("zeroshot",), ("mini",), (), ()).cells()
    (first,) = run(photos, tmp_path, [cell])
    path = tmp_path / "sweep" / "cells" / cell.folder / "result.json"
    path.write_text(DAMAGE["9350 %"](json.loads(path.read_text())))
    assert replace(run(photos, tmp_path, [cell])[0], peak_memory=0) == replace(first, peak_memory=0)


def test_all_cells_are_tested_on_the_same_images(photos, tmp_path, caplog):
    cells = Grid(("zeroshot", "coop"), ("mini",), (1, 2), (1, 2)).cells()
    results = run(photos, tmp_path, cells)
    data = load_data(str(photos))
    drawn = {item.name for shots in (1, 2) for seed in (1, 2) for item in draw_few_shot(data, shots, seed).train}
    assert {result.images for result in results} == {18 - len(drawn)} and 6 < len(drawn) < 18
    assert f"all experiments are tested on the same {18 - len(drawn)} of 18 images" in caplog.text
    assert len({result.tested_on for result in results}) == 1


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
    assert "diverges" in result.note and not [record for record in caplog.records if "diverges" in record.getMessage()]


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


def _end(*task) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
