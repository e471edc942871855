import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import COLOURS, failed, write_picture

from coopcli.cli.app import app
from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.prompts import ContextSettings
from coopcli.data.dataset import ImageItem
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.experiments.run_folder import _evaluation, append_epoch, begin_run, check_run, read_run, write_run
from coopcli.files import checkpoint_of
from coopcli.learned.prompt import load_prompt
from coopcli.learned.scores import MATRIX_CLASSES, evaluate_logits
from coopcli.learning.fit import Watch, fit
from coopcli.learning.recipe import Recipe

QUICK = Recipe(epochs=3, views=2)


def test_run_folder_and_steps(mini, split_photos, tmp_path):
    steps, epochs = [], []
    watch = Watch(lambda *step: steps.append(step), on_epoch=epochs.append)
    data = load_data(str(split_photos))
    result = fit(mini, data, QUICK, ContextSettings(2, "middle", True), shots=2, seed=3, cache=FeatureCache(None), watch=watch)
    begin_run(tmp_path / "run", {"seed": 3})
    write_run(tmp_path / "run", result, {"seed": 3})
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"prompt.safetensors", "metrics.json", "log.jsonl", "fewshot.json", "settings.toml", "README.md"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["learned"]["top1"] == result.test.metrics.top1
    assert metrics["few_shot_sha256"] == result.data.sha256
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == len(epochs) == 3
    assert json.loads((tmp_path / "run" / "fewshot.json").read_text())["train"] == [item.name for item in result.data.train]
    assert {step for step, _, _ in steps} == {"train images", "test images"}
    prompt = load_prompt(tmp_path / "run")
    assert prompt.context.shape == (3, 2, mini.token_width)
    assert prompt.training["seed"] == 3 and prompt.training["recipe"]["views"] == 2


def test_another_command_is_refused_with_what_differs(tmp_path):
    check_run(tmp_path, {"seed": 1, "lr": 0.002})
    begin_run(tmp_path, {"seed": 1, "lr": 0.002})
    checkpoint_of(tmp_path).write_bytes(b"half-way")
    check_run(tmp_path, {"seed": 1, "lr": 0.002})
    with pytest.raises(UsageError, match=r"other settings \(lr: 0\.002 -> 0\.1\); use --overwrite"):
        check_run(tmp_path, {"seed": 1, "lr": 0.1})
    assert checkpoint_of(tmp_path).exists()
    check_run(tmp_path, {"seed": 1, "lr": 0.1}, overwrite=True)
    assert not checkpoint_of(tmp_path).exists()


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    (tmp_path / ".metrics.json.4711.partial").write_bytes(b"{")
    begin_run(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


QUICK_FIT = ["--model", "mini", "--shots", "2", "--epochs", "3", "--views", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    for k, name in enumerate(COLOURS):
        for i in range(4):
            write_picture(root / "toy" / name / f"{i}.png", COLOURS[name], seed=10 * k + i)
    app(["fit", str(root / "toy"), *QUICK_FIT, "--no-cache", "-o", str(root / "run")], standalone_mode=False)
    return root / "run"


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_run_is_read_back_as_it_was_written(run):
    run_read = read_run(run)
    written = json.loads((run / "metrics.json").read_text())
    assert run_read.learned.metrics.top1 == written["learned"]["top1"] and run_read.learned.class_names == (
        "blue",
        "green",
        "red",
    )
    assert run_read.gain == written["learned"]["top1"] - written["hand_written"]["top1"]
    assert [epoch.epoch for epoch in run_read.log] == [0, 1, 2] and run_read.about["few_shot_sha256"] == written[
        "few_shot_sha256"
    ]
    assert run_read.variant == "2 shots, M = 16, end, paper recipe" and run_read.settings["seed"] == 3


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
    written = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(written | {"learned": written["learned"] | change}))
    with pytest.raises(CoopError, match="is not what `coop fit` wrote"):
        read_run(run)


def test_a_run_that_is_not_whole(run, coop):
    (run / "metrics.json").unlink()
    with pytest.raises(UsageError, match=r"metrics\.json.*cannot be read"):
        read_run(run)
    failed(coop("report", "nowhere"), 2, "nowhere")
    (run / "settings.toml").unlink()
    failed(coop("report", run), 2, "settings.toml")


# ------------------------------------------------------------------------------------- a folder never holds two runs


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Two fits of other seeds, and what each was asked."""
    root = tmp_path_factory.mktemp("fits")
    for k, name in enumerate(COLOURS):
        for i in range(3):
            write_picture(root / "toy" / name / f"{i}.png", COLOURS[name], seed=10 * k + i)
    clip, data = load_backbone("mini", device="cpu"), load_data(str(root / "toy"))
    return [(fit(clip, data, QUICK, ContextSettings(2), shots=1, seed=seed), {"seed": seed}) for seed in (1, 2)]


def whose(folder):
    """The seeds that the files of a folder tell of; without a prompt it is an unfinished run, which nothing reads."""
    try:
        run = read_run(folder)
    except UsageError:
        return set()
    names = json.loads((folder / "fewshot.json").read_text())["train"]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest == run.prompt.training["few_shot_sha256"] == run.about["few_shot_sha256"]
    return {run.prompt.training["seed"], run.settings["seed"], run.about["seed"]}


class Killed(BaseException):
    pass


def test_a_kill_at_any_step_leaves_one_run_or_none(fits, tmp_path, monkeypatch):
    """Every removal and every replacement of a file is a step, and the process may end before each."""
    (first, old), (second, new) = fits
    unlink, replace_ = Path.unlink, Path.replace
    seen, last = [], None
    for steps in range(100):
        folder = tmp_path / str(steps)
        begin_run(folder, old)
        write_run(folder, first, old)
        (folder / "report.html").write_text("of seed 1")
        assert whose(folder) == {1}
        left = iter(range(steps))

        def dying(true, left=left):
            def step(*given, **more):
                if next(left, None) is None:
                    raise Killed
                return true(*given, **more)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying(unlink))
            patch.setattr(Path, "replace", dying(replace_))
            try:
                check_run(folder, new, overwrite=True)
                begin_run(folder, new)
                append_epoch(folder, second.log[0])
                write_run(folder, second, new)
                last = steps
            except Killed:
                pass
        owners = whose(folder)
        assert len(owners) <= 1
        assert owners != {2} or not (folder / "report.html").exists()
        seen.append(owners)
        if last is not None:
            break
    assert seen[0] == {1} and seen[-1] == {2} and set() in seen and len(seen) > 10


def test_training_again_in_a_folder_begins_without_the_old_results(fits, tmp_path):
    result, settings = fits[0]
    begin_run(tmp_path, settings)
    append_epoch(tmp_path, result.log[0])
    begin_run(tmp_path, settings)  # the same, resumed
    assert (tmp_path / "log.jsonl").exists()
    write_run(tmp_path, result, settings)
    begin_run(tmp_path, settings)  # the same, from its start
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]
    (tmp_path / "README.md").write_text("my own card")
    begin_run(tmp_path, {"seed": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "settings.toml"]


@pytest.mark.parametrize("change", [{"top1": 93.5}, {"top1": float("nan")}, {"macro": -0.1}, {"top1": True}, {"macro": "0.5"}])
def test_impossible_accuracies_are_not_believed(run, change):
    written = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(written | {"learned": written["learned"] | change}))
    with pytest.raises(CoopError, match="is not what `coop fit` wrote"):
        read_run(run)


def test_accuracies_of_many_classes_are_read_as_they_were_written():
    """Beyond MATRIX_CLASSES there is no confusion matrix, but hits and the largest confusions."""
    names = [f"c{k % 2100}" for k in range(MATRIX_CLASSES + 200)]  # some twice, as in ImageNet
    items = [ImageItem(str(i), label, bytes) for i, label in enumerate([0, 1, 1, 2, 2150])]
    logits = F.one_hot(torch.tensor([0, 2, 2, 2, 50]), len(names)).float()
    evaluation = evaluate_logits(logits, names, items)
    read = _evaluation(json.loads(json.dumps(evaluation.as_dict())))
    assert read.class_names == tuple(names) and read.metrics == evaluation.metrics
    assert read.metrics.confusions() == [(1, 2, 2), (2150, 50, 1)] and read.metrics.counts()[2150] == 1
