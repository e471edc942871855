"""`coop fit`: run folders, variants, the same command again, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import failed, ran, write_picture

from coopcli.settings import read_settings

QUICK = ["--model", "mini", "--epochs", "2", "--views", "2"]


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


def test_what_is_skipped_is_counted(coop, photos):
    (photos / "red" / "broken.png").write_bytes(b"")
    for command in (("zeroshot", photos), ("ensemble", photos, "--template", "art of a {}.")):
        told = json.loads(ran(coop(*command, "--model", "mini", "--json")))
        assert told["skipped"] == 1 and told["n"] == sum(map(sum, told["confusion"]))
    fitted = json.loads(ran(coop("fit", photos, *QUICK, "--on-error", "skip", "--json", "-o", "run")))
    assert fitted["skipped"] == 1
    again = json.loads(ran(coop("eval", "run", photos, "--json")))
    assert (again["skipped"], again["n"]) == (1, told["n"])


def test_recipes_and_views(coop, photos):
    ran(coop("fit", photos, "--model", "mini", "--recipe", "fast", "--epochs", "3", "--views", "online", "-o", "run"))
    settings = read_settings(Path("run/settings.toml"))
    kept = {key: settings[key] for key in ("recipe", "epochs", "lr", "batch-size", "views", "resolved")}
    assert kept.pop("resolved")["optimizer"] == "adam"
    assert kept == {"recipe": "fast", "epochs": 3, "lr": 0.01, "batch-size": 0, "views": "online"}
    for wrong in (("--views", "none"), ("--views", "0"), ("--recipe", "slow")):
        code, out, err = coop("fit", photos, *QUICK, *wrong)
        assert (code, out) == (2, "") and wrong[1] in err


def test_the_same_run_again_and_another_in_its_folder(coop, photos, tmp_path):
    fit = ["fit", photos, "--shots", "2", *QUICK, "-o", "run"]
    first = json.loads(ran(coop(*fit, "--json")))
    written = (tmp_path / "run" / "prompt.safetensors").stat().st_mtime_ns
    code, out, err = coop(*fit, "--json")
    again = json.loads(out)
    assert code == 0 and "done already" in err and "--overwrite trains again" in err
    assert (first.pop("kept"), again.pop("kept")) == (False, True) and first == again
    assert (tmp_path / "run" / "prompt.safetensors").stat().st_mtime_ns == written
    assert "gain" in ran(coop(*fit, "--plot")) and (tmp_path / "run" / "confusion.png").exists()
    (tmp_path / "run" / "metrics.json").write_text("{")
    code, _, err = coop(*fit)  # damaged results are made again
    assert code == 0 and "training again" in err
    assert (tmp_path / "run" / "prompt.safetensors").stat().st_mtime_ns != written
    failed(coop(*fit, "--seed", "2"), 2, "run of other settings", "seed: 1 -> 2", "--overwrite")
    ran(coop(*fit, "--seed", "2", "--overwrite"))


def test_bad_data(coop, photos, tmp_path):
    (photos / "yellow").mkdir()
    failed(coop("fit", photos, *QUICK), 1, "yellow", "has no images")
    (photos / "yellow" / "bad.png").write_bytes(b"not an image")
    failed(coop("fit", photos, "--shots", "1", *QUICK), 1, "yellow/bad.png", "cannot be read")
    write_picture(tmp_path / "single" / "red" / "0.png")
    failed(coop("fit", "single", *QUICK), 1, "has only one class")
    (tmp_path / "empty").mkdir()
    failed(coop("fit", "empty", *QUICK), 1, "no class folders")
    (tmp_path / "names").write_text(json.dumps({"red": "red " * 90}))
    (photos / "yellow" / "bad.png").unlink()
    (photos / "yellow").rmdir()
    failed(coop("fit", photos, *QUICK, "--classnames", "names"), 1, "is too long", "77")
    assert not (tmp_path / "coop-runs").exists()


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
    opening, run, error = (line for line in err.splitlines() if not line.startswith(("epochs: ", "train images: ")))
    assert opening == "data: photos: 3 classes, 18 images"
    assert run.startswith("run: ") and run.endswith("16 context vectors, 100000 epochs, mini on cpu")
    assert error.startswith("coop: stopped; run the same command to resume")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"settings.toml", "checkpoint.safetensors", "log.jsonl"}


def test_fit_draws_its_figures(coop, photos, tmp_path):
    ran(coop("fit", photos, "--shots", "2", *QUICK, "-o", "run", "--plot"))
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {
        f"{name}.png" for name in ("learning", "mosaic", "confusion", "similarity")
    }


def test_the_log_grows_by_the_epoch(coop, photos, tmp_path, monkeypatch):
    from coopcli.experiments import run_folder

    lengths = []
    append = run_folder.append_epoch

    def spy(folder, epoch):
        append(folder, epoch)
        lengths.append(len((folder / "log.jsonl").read_text().splitlines()))

    monkeypatch.setattr(run_folder, "append_epoch", spy)
    ran(coop("fit", photos, "--shots", "2", "--model", "mini", "--epochs", "4", "--views", "1", "-o", "run"))
    assert lengths == [1, 2, 3, 4]
    ran(coop("fit", photos, "--shots", "2", "--model", "mini", "--epochs", "4", "--views", "1", "-o", "run", "--overwrite"))
    assert lengths == [1, 2, 3, 4] * 2  # begun anew


def test_a_prompt_that_learned_nothing_useful_says_where_to_look(capsys):
    from coopcli.cli.fit import Outcome, show
    from coopcli.learned.scores import Evaluation, score

    def evaluation(hits):
        labels = torch.tensor([0, 1] * 5)
        return Evaluation(("a", "b"), (), [], [], score(labels, torch.where(torch.arange(10) < hits, labels, 1 - labels), 2))

    class Prompt:
        class_names = ("a", "b")

    for learned, worse in ((evaluation(4), True), (evaluation(6), False)):
        show(Outcome(Prompt(), learned, evaluation(5), 0, 0.1, {}, kept=False), "toy", "{}")
        out, err = capsys.readouterr()
        assert ("docs/choosing.md" in err) == worse and ("-10.0" in out) == worse and ("+10.0" in out) != worse
