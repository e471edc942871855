"""Settings of a command: what settings.toml holds is derived from the options, and read back by --config."""

import pytest
import typer
from conftest import ran, write_picture

from coopcli.cli.app import app
from coopcli.cli.config import PRESENTATION, settings_of
from coopcli.settings import read_settings

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
