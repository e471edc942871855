"""The commands as a user types them: help, the whole path, one-line errors."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import failed, ran

from coopcli.cli.app import app

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
    assert "nearest words" in ran(coop("interpret", run))


def test_wrong_paths(coop, photos, tmp_path):
    failed(coop("fit", "./nowhere", "--model", "mini"), 2, '"./nowhere"')
    failed(coop("zeroshot", "no/where", "--model", "mini"), 2, '"no/where"')
    failed(coop("eval", "nowhere.safetensors", photos), 2, '"nowhere.safetensors"')
    failed(coop("eval", photos / "red" / "0.png", photos), 2, "is not a prompt file of coop")
    failed(coop("interpret", photos), 2, "prompt.safetensors")
    failed(coop("zeroshot", photos, "--model", "./nowhere"), 1, '"./nowhere"', "--model mini")
    failed(coop("fit", photos, "--classnames", "nowhere", "--model", "mini"), 2, '"nowhere"')
    assert not (tmp_path / "coop-runs").exists()


def test_bad_options(coop, photos):
    failed(coop("fit", photos, *QUICK, "--init", "a photo of a", "--context-length", "7"), 2, "4 tokens", "contradicts")
    failed(coop("zeroshot", photos, "--model", "mini", "--template", "no place"), 2, "no {} for the class name")
    failed(coop("zeroshot", photos, "--model", "mini", "--template", "{}", "--template", "a {}"), 2, "coop ensemble")
    failed(coop("ensemble", photos, "--model", "mini", "--templates", "nope"), 2, "the sets are")
    failed(coop("zeroshot", photos, "--model", "mini", "--split", "val"), 2, "has no val split")
    for options in (["--shots", "0"], ["--shots", "few"], ["--position", "top"], ["--epochs", "0"], ["--nonsense"]):
        code, out, err = coop("fit", photos, *options)
        assert code == 2 and out == "" and options[0].removeprefix("--") in err + "shots" and "Traceback" not in err


def test_a_defect_is_one_line_too(coop, photos, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("coopcli.cli.setup.load_data", broken)
    failed(coop("zeroshot", photos, "--model", "mini"), 1, "ZeroDivisionError: by design", "COOP_DEBUG=1")
    monkeypatch.setenv("COOP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        coop("zeroshot", photos, "--model", "mini")


def test_ctrl_c_while_libraries_load(tmp_path):
    """A library that is being imported may make another error of it."""
    code = (
        "import os, signal, sys\nfrom coopcli import __main__\nimport coopcli.cli.app as module\n"
        "def app(**options):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt as error: raise ModuleNotFoundError('Could not import module') from error\n"
        "module.app = app\n__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.startswith("coop: stopped") and done.stderr.count("\n") == 1
