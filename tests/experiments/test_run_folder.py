import json

import pytest

from coopcli.clip.cache import FeatureCache
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import UsageError
from coopcli.experiments.run_folder import begin_run, check_run, write_run
from coopcli.files import checkpoint_of
from coopcli.learned.prompt import load_prompt
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
    assert prompt.context.shape == (3, 2, 128)
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
