"""The commands as a user types them: outputs, exit codes, one-line errors."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import failed, ran, write_picture
from safetensors.torch import load_file

from coopcli.cli.app import app
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.settings import read_settings

QUICK = ["--model", "mini", "--epochs", "2", "--views", "2"]


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; sys.argv = ['coop', sys.argv[1]]; from coopcli.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'PIL') if name in sys.modules])"
    )
    for option, word in (("--help", "Learn prompts"), ("--version", "coop 0.")):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
        assert word in done.stdout and done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_every_command_has_help(coop, command):
    assert "Usage" in ran(coop(command, "--help"))


def test_fit_then_eval_then_interpret(coop, photos, tmp_path):
    out, err = coop("fit", photos, "--shots", "4", *QUICK)[1:]
    assert "hand-written" in out and "learned prompt" in out and "6 test images" in out
    assert "training" in err
    run = tmp_path / "coop-runs" / "photos-mini-end-4shots-seed1"
    assert (run / "prompt.safetensors").stat().st_size < 40_000

    told = json.loads(ran(coop("eval", run, photos, "--json", "--predictions", "p.csv")))
    assert told["n"] == 18 and set(told["per_class"]) == {"red", "green", "blue"}
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert sum(int(row["correct"]) for row in rows) / 18 == pytest.approx(told["top1"])
    assert all(row["correct"] == str(int(row["label"] == row["prediction"])) for row in rows)
    assert "confusion" in ran(coop("eval", run, photos))

    near = json.loads(ran(coop("interpret", run, "--top", "2", "--json")))
    assert [len(vector) for vector in near["contexts"][0]["vectors"]] == [2] * 16
    assert "nearest token" in ran(coop("interpret", run))


@pytest.mark.parametrize("variant", [["--position", "middle"], ["--csc"], ["--position", "front", "--context-length", "3"],
                                     ["--init", "a photo of a"], ["--csc", "--init", "a photo of a", "--position", "middle"],
                                     ["--shots", "all"], ["--class-chunk", "2"]])  # fmt: skip
def test_variants(coop, split_photos, variant):
    told = json.loads(ran(coop("fit", split_photos, "--shots", "2", *QUICK, *variant, "--json", "-o", "run")))
    assert told["learned"]["n"] == 9
    again = json.loads(ran(coop("eval", "run", split_photos, "--json")))
    assert again["top1"] == told["learned"]["top1"]
    if "--csc" in variant:
        assert "green" in ran(coop("interpret", "run"))


def test_in_the_current_folder(coop, photos, monkeypatch):
    monkeypatch.chdir(photos)
    ran(coop("fit", "--shots", "2", *QUICK))
    ran(coop("fit", "--shots", "2", *QUICK))  # the runs it wrote are no class
    assert (photos / "coop-runs" / "photos-mini-end-2shots-seed1" / "prompt.safetensors").exists()


def test_same_command_same_bytes_in_new_processes(photos, tmp_path):
    for cache in ("one", "two"):  # cold both times
        subprocess.run(
            [sys.executable, "-m", "coopcli", "fit", str(photos), "--shots", "3", *QUICK, "-o", str(tmp_path / cache)],
            env=os.environ | {"COOP_CACHE": str(tmp_path / f"cache {cache}")}, check=True, capture_output=True,
        )  # fmt: skip
    one, two = ((tmp_path / name / "prompt.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_zeroshot_and_ensemble(coop, photos):
    told = json.loads(ran(coop("zeroshot", photos, "--model", "mini", "--template", "a {} background.", "--json")))
    assert told["top1"] > 0.9 and told["templates"] == ["a {} background."]
    assert len(json.loads(ran(coop("ensemble", photos, "--model", "mini", "--json")))["templates"]) == 80
    named = ran(coop("ensemble", photos, "--model", "mini", "--templates", "eurosat", "--template", "{}", "--json"))
    assert len(json.loads(named)["templates"]) == 4
    own = ran(coop("ensemble", photos, "--model", "mini", "--template", "{}", "--template", "a {}", "--json"))
    assert json.loads(own)["templates"] == ["{}", "a {}"]
    assert '"{} wall"' in ran(coop("zeroshot", photos, "--model", "mini", "--template", "{} wall"))


def test_splits(coop, split_photos):
    def images(*options):
        return json.loads(ran(coop("zeroshot", split_photos, "--model", "mini", "--json", *options)))["n"]

    assert (images(), images("--split", "train"), images("--split", "val"), images("--split", "all")) == (9, 12, 6, 27)


def test_what_is_skipped_is_counted(coop, photos):
    (photos / "red" / "broken.png").write_bytes(b"")
    for command in (("zeroshot", photos), ("ensemble", photos, "--template", "art of a {}.")):
        told = json.loads(ran(coop(*command, "--model", "mini", "--json")))
        assert told["skipped"] == 1 and told["n"] == sum(map(sum, told["confusion"]))
    fitted = json.loads(ran(coop("fit", photos, *QUICK, "--on-error", "skip", "--json", "-o", "run")))
    assert fitted["skipped"] == 1
    again = json.loads(ran(coop("eval", "run", photos, "--json")))
    assert (again["skipped"], again["n"]) == (1, told["n"])


def test_prompt_on_other_and_fewer_classes(coop, photos, tmp_path):
    (tmp_path / "names").write_text("red\tcrimson\n")
    ran(coop("fit", photos, "--shots", "2", *QUICK, "--classnames", "names", "-o", "run"))
    assert "crimson" in json.loads(ran(coop("eval", "run", photos, "--json")))["per_class"]
    for colour in ("yellow", "blue"):
        write_picture(tmp_path / "other" / colour / "0.png")
    assert set(json.loads(ran(coop("eval", "run", "other", "--json")))["per_class"]) == {"yellow", "blue"}
    write_picture(tmp_path / "fewer" / "red" / "0.png")
    write_picture(tmp_path / "fewer" / "blue" / "0.png")
    code, out, err = coop("eval", "run", "fewer", "--json")
    assert (code, set(json.loads(out)["per_class"])) == (0, {"crimson", "blue"})
    assert "2 of the prompt's 3 classes" in err


def test_recipes_and_views(coop, photos):
    ran(coop("fit", photos, "--model", "mini", "--recipe", "fast", "--epochs", "3", "--views", "online", "-o", "run"))
    settings = read_settings(Path("run/settings.toml"))
    kept = {key: settings[key] for key in ("recipe", "epochs", "lr", "batch-size", "views", "resolved")}
    assert kept.pop("resolved")["optimizer"] == "adam"
    assert kept == {"recipe": "fast", "epochs": 3, "lr": 0.01, "batch-size": 0, "views": "online"}
    for wrong in (("--views", "none"), ("--views", "0"), ("--recipe", "slow")):
        code, out, err = coop("fit", photos, *QUICK, *wrong)
        assert (code, out) == (2, "") and wrong[1] in err


def test_cache_command(coop, photos):
    ran(coop("zeroshot", photos, "--model", "mini"))
    assert json.loads(ran(coop("cache", "--json")))["features"] == 18 + 1  # the images, and the class features of the prompt
    ran(coop("zeroshot", photos, "--model", "mini", "--no-cache"))
    cleared = json.loads(ran(coop("cache", "clear", "--json")))
    assert (cleared["features"], cleared["removed"]) == (0, 18 + 1)
    assert ran(coop("cache")).startswith("0 features")
    assert json.loads(ran(coop("cache", "--json")))["max_bytes"] is None
    assert json.loads(ran(coop("cache", "--max-size", "2GB", "--json")))["max_bytes"] == 2 * 10**9
    ran(coop("zeroshot", photos, "--model", "mini"))
    assert "of at most 1907.3 MiB" in ran(coop("cache"))
    code, out, err = coop("cache", "--max-size", "much")
    assert (code, out) == (2, "") and '"much"' in err


def test_the_same_run_again_and_another_in_its_folder(coop, photos):
    fit = ["fit", photos, "--shots", "2", *QUICK, "-o", "run"]
    ran(coop(*fit))
    ran(coop(*fit))
    failed(coop(*fit, "--seed", "2"), 2, "run of other settings", "seed: 1 -> 2", "--overwrite")
    ran(coop(*fit, "--seed", "2", "--overwrite"))


# ---------------------------------------------------------------------------------------------- what goes wrong


def test_wrong_paths(coop, photos, tmp_path):
    failed(coop("fit", "./nowhere", "--model", "mini"), 2, '"./nowhere"')
    failed(coop("zeroshot", "no/where", "--model", "mini"), 2, '"no/where"')
    failed(coop("eval", "nowhere.safetensors", photos), 2, '"nowhere.safetensors"')
    failed(coop("eval", photos / "red" / "0.png", photos), 2, "no prompt file of coop")
    failed(coop("interpret", photos), 2, "prompt.safetensors")
    failed(coop("zeroshot", photos, "--model", "./nowhere"), 1, '"./nowhere"', "--model mini")
    failed(coop("fit", photos, "--classnames", "nowhere", "--model", "mini"), 2, '"nowhere"')
    assert not (tmp_path / "coop-runs").exists()


def test_bad_data(coop, photos, tmp_path):
    (photos / "yellow").mkdir()
    failed(coop("fit", photos, *QUICK), 1, "yellow", "holds no images")
    (photos / "yellow" / "bad.png").write_bytes(b"not an image")
    failed(coop("fit", photos, "--shots", "1", *QUICK), 1, "yellow/bad.png", "cannot be read")
    write_picture(tmp_path / "single" / "red" / "0.png")
    failed(coop("fit", "single", *QUICK), 1, "one class only")
    (tmp_path / "empty").mkdir()
    failed(coop("fit", "empty", *QUICK), 1, "no class folders")
    (tmp_path / "names").write_text(json.dumps({"red": "red " * 90}))
    (photos / "yellow" / "bad.png").unlink()
    (photos / "yellow").rmdir()
    failed(coop("fit", photos, *QUICK, "--classnames", "names"), 1, "is too long", "77")
    assert not (tmp_path / "coop-runs").exists()


def test_bad_options(coop, photos):
    failed(coop("fit", photos, *QUICK, "--init", "a photo of a", "--context-length", "7"), 2, "4 tokens", "contradicts")
    failed(coop("zeroshot", photos, "--model", "mini", "--template", "no place"), 2, "exactly once")
    failed(coop("zeroshot", photos, "--model", "mini", "--template", "{}", "--template", "a {}"), 2, "coop ensemble")
    failed(coop("ensemble", photos, "--model", "mini", "--templates", "nope"), 2, "the sets are")
    failed(coop("zeroshot", photos, "--model", "mini", "--split", "val"), 2, "has no val split")
    for options in (["--shots", "0"], ["--shots", "few"], ["--position", "top"], ["--epochs", "0"], ["--nonsense"]):
        code, out, err = coop("fit", photos, *options)
        assert code == 2 and out == "" and options[0] in err + "--shots" and "Traceback" not in err


def test_class_specific_prompt_on_other_classes(coop, photos, tmp_path):
    ran(coop("fit", photos, "--shots", "2", *QUICK, "--csc", "-o", "run"))
    for colour in ("yellow", "blue"):
        write_picture(tmp_path / "other" / colour / "0.png")
    failed(coop("eval", "run", "other"), 1, "class-specific", '"yellow"', "without --csc")


def test_prompt_with_another_model(coop, photos, tmp_path):
    import shutil

    from coopcli.clip.hf_clip import MINI_FOLDER

    ran(coop("fit", photos, "--shots", "2", *QUICK, "-o", "run"))
    shutil.copytree(MINI_FOLDER, tmp_path / "same")
    ran(coop("eval", "run", photos, "--model", "same"))
    settings = json.loads((tmp_path / "same" / "preprocessor_config.json").read_text())
    (tmp_path / "same" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0, 0, 0]}))
    failed(coop("eval", "run", photos, "--model", "same"), 1, '"mini"', '"same"', "another model")


def test_a_defect_is_one_line_too(coop, photos, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("coopcli.cli.setup.load_data", broken)
    failed(coop("zeroshot", photos, "--model", "mini"), 1, "ZeroDivisionError: by design", "COOP_DEBUG=1")
    monkeypatch.setenv("COOP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        coop("zeroshot", photos, "--model", "mini")


def test_an_output_that_cannot_be_written(coop, photos, tmp_path):
    (tmp_path / "file").write_text("")
    failed(coop("fit", photos, "--shots", "1", *QUICK, "-o", "file/run"), 2, "file/run", "cannot be written")


def test_ctrl_c_keeps_the_last_whole_epoch(photos, tmp_path):
    command = [sys.executable, "-m", "coopcli", "fit", str(photos), "--shots", "3", "--model", "mini", "--epochs", "100000"]
    command += ["-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.time() + 120
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.count("\n") == 1 and err.startswith("coop: stopped; the same command goes on from here")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"settings.toml", "checkpoint.safetensors"}


def test_pickled_weights_are_read_only_when_allowed(coop, photos, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(MINI_FOLDER, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    failed(coop("zeroshot", photos, "--model", folder), 1, "--allow-pickle-weights")
    ran(coop("zeroshot", photos, "--model", folder, "--allow-pickle-weights"))


def test_offline_without_the_model_is_one_line_at_once(photos):
    done = subprocess.run(
        [sys.executable, "-m", "coopcli", "zeroshot", str(photos)], capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "--model mini" in done.stderr


def test_fit_draws_its_figures(coop, photos, tmp_path):
    ran(coop("fit", photos, "--shots", "2", *QUICK, "-o", "run", "--plot"))
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"confusion.png", "similarity.png"}


def test_ctrl_c_while_libraries_load(tmp_path):
    """A library that is being imported may make another error of it."""
    code = (
        "import os, signal, sys\nfrom coopcli import __main__\nimport coopcli.cli.app as module\n"
        "def app():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt as error: raise ModuleNotFoundError('Could not import module') from error\n"
        "module.app = app\n__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.startswith("coop: stopped") and done.stderr.count("\n") == 1


def test_without_matplotlib_the_figures_are_left_out(coop, photos, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    grid = ["--model", "mini", "--shots", "1", "--seeds", "1", "--views", "1", "--recipe", "fast", "--methods"]
    code, out, err = coop("sweep", photos, *grid, "zeroshot,coop", "-o", "sweep")
    assert code == 0 and "zeroshot" in out and "figures need matplotlib" in err
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {"results.csv", "results.md"}
    (cell,) = (tmp_path / "sweep" / "cells").glob("coop-*")
    code, out, err = coop("transfer", cell, photos, "-o", "moved")
    assert code == 0 and "zeroshot" in out and "figures need matplotlib" in err
    monkeypatch.setitem(sys.modules, "sklearn", None)
    failed(coop("sweep", photos, *grid, "coop,linear-probe", "-o", "other"), 2, "needs scikit-learn", "--methods")
    assert not (tmp_path / "other").exists()


def test_folders_of_runs(coop, photos, monkeypatch, tmp_path):
    """They are no classes, and what one command wrote the other does not take for its own."""
    monkeypatch.chdir(photos)
    ran(coop("fit", *QUICK, "--output", "runs/first"))
    assert json.loads(ran(coop("zeroshot", "--model", "mini", "--json")))["class_names"] == ["blue", "green", "red"]
    grid = [
        "--model",
        "mini",
        "--methods",
        "coop",
        "--shots",
        "1",
        "--seeds",
        "1",
        "--recipe",
        "fast",
        "--views",
        "1",
        "--no-plot",
    ]
    failed(coop("sweep", *grid, "-o", "runs/first"), 2, "holds the results of coop fit; use another --output")
    ran(coop("sweep", *grid, "-o", "grid"))
    failed(coop("fit", *QUICK, "-o", "grid"), 2, "holds the results of coop sweep")
    failed(coop("predict", "grid", "red"), 2, "those of a sweep lie in its folder cells")
    (cell,) = (photos / "grid" / "cells").iterdir()
    failed(coop("report", cell), 2, "one experiment of a sweep", "grid")
