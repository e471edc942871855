import json
import shutil

import pytest
from conftest import COLOURS, failed, write_picture

from coopcli.cli.app import app
from coopcli.errors import CoopError, UsageError
from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.run_folder import read_run
from coopcli.experiments.summary import summary
from coopcli.experiments.sweep_folder import read_sweep, write_results

QUICK = ["--model", "mini", "--shots", "2", "--epochs", "3", "--views", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    for k, name in enumerate(COLOURS):
        for i in range(4):
            write_picture(root / "toy" / name / f"{i}.png", COLOURS[name], seed=10 * k + i)
    app(["fit", str(root / "toy"), *QUICK, "--no-cache", "-o", str(root / "run")], standalone_mode=False)
    return root / "run"


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_run_is_read_back_as_it_was_told(run):
    found = read_run(run)
    told = json.loads((run / "metrics.json").read_text())
    assert found.learned.metrics.top1 == told["learned"]["top1"] and found.learned.names == ("blue", "green", "red")
    assert found.gain == told["learned"]["top1"] - told["hand_written"]["top1"]
    assert [epoch.epoch for epoch in found.log] == [0, 1, 2] and found.about["few_shot_sha256"] == told["few_shot_sha256"]
    assert found.variant == "2 shots, M = 16, end, paper recipe" and found.settings["seed"] == 3


DAMAGE = {
    "metrics.json": ["", "[]", "{", '{"learned": 3, "hand_written": null}', '{"learned": null}', "\udcff"],
    "log.jsonl": ["{}", "[1]", '{"epoch": "x"}', "nonsense"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGE.items() for content in contents])
def test_damaged_runs_are_told(run, name, content):
    (run / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CoopError, match="is not what `coop fit` wrote"):
        read_run(run)


@pytest.mark.parametrize("change", [{"confusion": [[1]]}, {"per_class": {}}, {"n": None}, {"top1": "much"}])
def test_damaged_scores_are_told(run, change):
    told = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(told | {"learned": told["learned"] | change}))
    with pytest.raises(CoopError, match="is not what `coop fit` wrote"):
        read_run(run)


def test_a_run_that_is_not_whole(run, coop):
    (run / "metrics.json").unlink()
    with pytest.raises(UsageError, match=r"metrics\.json.*cannot be read"):
        read_run(run)
    failed(coop("report", "nowhere"), 2, "nowhere")
    (run / "settings.toml").unlink()
    failed(coop("report", run), 2, "settings.toml")


@pytest.mark.parametrize("damage", ["{", "[]", '{"summary": [{}], "results": [], "settings": {}}', '{"summary": []}'])
def test_a_sweep_is_read_back_as_its_lines(tmp_path, damage):
    prompts = Variant(None, "middle", True, "a photo of a", "fast")
    cells = [Cell("zeroshot", "mini"), *(Cell("coop", "mini", *of, prompts) for of in ((1, 1), (1, 2), (None, 1)))]
    results = [Result(cell, 0.25 * k, 0.2 * k, None, None, 8, seconds=k) for k, cell in enumerate(cells)]
    results.append(Result(Cell("tip-adapter", "mini", 1, 1), note="left out"))
    results += [Result(Cell("lp++", "mini", 4, seed), top1) for seed, top1 in ((1, 0.5), (2, None))]  # one of two seeds
    write_results(tmp_path, "toy", {"data": "toy"}, results, plot=False)
    sweep = read_sweep(tmp_path)
    assert sweep.lines == summary(results) and sweep.settings == {"data": "toy"} and sweep.results[4]["note"] == "left out"
    (tmp_path / "results.json").write_text(damage)
    with pytest.raises(CoopError, match="is not what `coop sweep` wrote"):
        read_sweep(tmp_path)
