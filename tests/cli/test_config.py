"""Settings of a command: what settings.toml holds is derived from the options, and read back by --config."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from conftest import failed, ran, write_picture

from coopcli.choices import Position
from coopcli.cli import options
from coopcli.cli.app import app
from coopcli.cli.config import PRESENTATION, settings_of
from coopcli.errors import UsageError
from coopcli.settings import read_settings, to_toml

COMMANDS = typer.main.get_command(app).commands
GIVEN = {  # something else than the default, for every option that is none of presentation
    "fit": {
        "shots": "2", "seed": "3", "context-length": "4", "position": "front", "csc": None, "init": None,
        "reference-init": None, "template": "art of a {}.", "recipe": "fast", "epochs": "2", "lr": "0.02", "batch-size": "4",
        "warmup-epochs": "0", "warmup-lr": "0.001", "momentum": "0.8", "weight-decay": "0.1", "views": "2", "model": "mini",
        "max-pixels": "5000", "on-error": "skip", "classes": "base", "class-chunk": "1",
    },
    "sweep": {
        "methods": "zeroshot", "shots": "1", "seeds": "5", "model": "mini", "context-length": "4", "position": "front",
        "csc": "yes", "init": "random", "recipe": "fast", "classes": "base", "template": "art of a {}.",
        "templates": "eurosat", "views": "2", "max-pixels": "5000",
    },
}  # fmt: skip


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_every_option_is_a_setting_or_presentation(command):
    """A new option lands in settings.toml by itself; one that says how results are shown is named in PRESENTATION."""
    known = COMMANDS[command]
    context = known.make_context(command, ["photos"])
    options = {max(parameter.opts, key=len).removeprefix("--") for parameter in known.params}
    assert settings_of(context).keys() == options - PRESENTATION
    assert options & PRESENTATION >= {"output", "overwrite", "config", "json", "plot", "no-cache"}


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_settings_hold_what_was_typed(coop, photos, tmp_path, command):
    write_picture(photos / "yellow" / "0.png", (200, 200, 30))  # a fourth class, or there is no half "new"
    write_picture(photos / "yellow" / "1.png", (200, 200, 30), seed=1)
    words = [word for key, value in GIVEN[command].items() for word in (f"--{key}", value) if value]
    csc = ["--csc"] if command == "fit" else ["--no-plot"]
    ran(coop(command, photos, *words, *csc, "-o", "run"))
    kept = read_settings(tmp_path / "run" / "settings.toml")
    listed = {"init"} if command == "sweep" else set()
    for key, value in GIVEN[command].items():
        if value:
            assert (str(kept[key][0]) if key in listed else str(kept[key])) == value, key
    assert kept["csc"] in (True, "yes") and kept["data"] == str(photos)
    # The file repeats the run: the same settings, which the folder takes for the same run.
    ran(coop(command, "--config", "run/settings.toml", "-o", "run", *(["--no-plot"] if command == "sweep" else [])))
    assert read_settings(tmp_path / "run" / "settings.toml") == kept


# --------------------------------------------------------------------------------------------------------- --config


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    """Return what a command gets, given the text of run.toml and a command line."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command(
        data: options.DataArgument = ".",
        context_length: Annotated[int, typer.Option("--context-length", min=1)] = 16,
        lr: Annotated[float | None, typer.Option("--lr")] = None,
        shots: Annotated[str, typer.Option("--shots")] = "16",
        csc: Annotated[bool, typer.Option("--csc")] = False,
        position: Annotated[Position, typer.Option("--position")] = "end",
        output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
        template: options.TemplateOption = None,
        config: options.ConfigOption = None,
    ):
        result.update(locals())

    result = {}

    def run(text, *arguments, config="run.toml"):
        Path("run.toml").write_text(text)
        app([*arguments, "--config", config], standalone_mode=False)
        return {key: value for key, value in result.items() if key in KEYS}

    return run


KEYS = ("data", "context_length", "lr", "shots", "csc", "position", "output", "template")
ALL = """
data = "photos"
context-length = 8
lr = 1e-3
shots = 4
csc = true
position = "front"
output = "run"
template = ["{}", "a {}"]

[resolved]
fingerprint = "f"
"""


def test_a_file_says_what_the_command_line_does_not(resolved, capsys):
    assert resolved("") == dict(zip(KEYS, (".", 16, None, "16", False, "end", None, None), strict=True))
    assert resolved(ALL) == dict(zip(KEYS, ("photos", 8, 0.001, "4", True, "front", Path("run"), ["{}", "a {}"]), strict=True))
    line = ["other", "--context-length", "2", "--lr", "1", "--shots", "all", "--position", "end", "-o", "o", "--template", "{}"]
    assert resolved(ALL, *line) == dict(zip(KEYS, ("other", 2, 1.0, "all", True, "end", Path("o"), ["{}"]), strict=True))
    assert resolved(to_toml({"data": "photos", "context-length": 8, "lr": None}))["context_length"] == 8
    assert capsys.readouterr().err == ""


def test_unknown_keys_are_noted(resolved, capsys):
    assert resolved("context_length = 8\n[elsewhere]\n")["context_length"] == 16
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first.startswith('note: "run.toml": unknown key "context_length" has no effect')
        and 'did you mean "context-length"?' in first
    )
    assert second == 'note: "run.toml": unknown key "elsewhere" has no effect on this command'
    resolved('config = "run.toml"')  # one file, not a chain of them
    assert 'unknown key "config"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("context-length = 0", "greater than or equal to 1"), ("context-length = 1.5", "valid integer"),
        ('lr = "fast"', "valid number"), ("lr = true", "a text or a number"), ("lr = [1]", "a text or a number"),
        ("data = 2026-11-24", "a text or a number"), ("csc = 1", "true or false"), ('csc = "true"', "true or false"),
        ('template = "{}"', "a list"), ("template = [true]", "a text or a number"), ('position = "top"', "'end', 'middle'"),
        ("[shots]", "a text or a number"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_with_file_and_key(resolved, text, why):
    with pytest.raises(UsageError) as error:
        resolved(text)
    key = text.strip("[]").split()[0]
    assert str(error.value).startswith(f'"run.toml": {key} = ') and why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_settings_file_that_is_not_there(resolved):
    with pytest.raises(UsageError, match=r'settings file "no.toml" cannot be read'):
        resolved("", config="no.toml")


@pytest.mark.parametrize(
    "line",
    [
        ["--shots", "2", "--lr", "1e-3", "--csc", "--position", "middle", "--init", "a photo of a", "--template", 'a "{}"'],
        ["--recipe", "fast", "--views", "online", "--context-length", "3", "--class-chunk", "2"],
        ["--shots", "all", "--seed", "0", "--views", "2"],
    ],
)
def test_the_settings_of_a_run_repeat_it_to_the_byte(coop, photos, line, tmp_path):
    ran(coop("fit", photos, "--model", "mini", "--epochs", "2", *line, "-o", "one"))
    ran(coop("fit", "--config", "one/settings.toml", "-o", "two"))
    for name in ("prompt.safetensors", "settings.toml", "log.jsonl", "fewshot.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    failed(coop("fit", "--config", "one/settings.toml", "--seed", "7", "-o", "two"), 2, "run of other settings", "-> 7")


def test_what_is_typed_comes_before_the_file(coop, photos, tmp_path):
    ran(coop("fit", photos, "--model", "mini", "--epochs", "1", "--views", "1", "--csc", "-o", "one"))
    ran(coop("fit", "--config", "one/settings.toml", "--no-csc", "--epochs", "2", "-o", "two"))
    one, two = (read_settings(tmp_path / name / "settings.toml") for name in ("one", "two"))
    assert {key: two[key] for key in one if two[key] != one[key]} == {"csc": False, "epochs": 2}
