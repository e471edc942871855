"""Help screens at several widths: nothing is cut, flags have no type, what is used most comes first."""

import re

import pytest
from conftest import ran

from coopcli.cli.app import app
from coopcli.cli.console import out

COMMANDS = [command.name for command in app.registered_commands]


def screen(coop, monkeypatch, width, *command):
    monkeypatch.setattr(type(out), "width", property(lambda _: width))
    return ran(coop(*command))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut_at_any_width(coop, monkeypatch, command, width):
    shown = screen(coop, monkeypatch, width, command, "--help")
    assert "…" not in shown and not re.search("<[a-z]", shown)
    assert max(map(len, shown.splitlines())) <= width and not any(line.endswith(" ") for line in shown.splitlines())
    words = " ".join(shown.split())
    for default in ("openai/clip-vit-base-patch16",) if command in ("fit", "sweep", "zeroshot", "ensemble", "import") else ():
        assert default in words.replace(" ", "") if width == 40 else default in words


def test_what_is_used_most_comes_first(coop, monkeypatch):
    shown = screen(coop, monkeypatch, 80, "fit", "-h")
    order = ["  DATA", "-m, --model MODEL", "-n, --shots N|all", "-o, --output FOLDER", "--seed N", "--context-length N"]
    places = [shown.index(words) for words in order]
    assert places == sorted(places)
    assert "--plot / --no-plot   " in shown and "[default: 16; " not in shown and "--json   " in shown


def test_a_narrow_terminal_has_explanations_below(coop, monkeypatch):
    shown = screen(coop, monkeypatch, 40, "predict", "--help").splitlines()
    at = shown.index("  --top K")
    assert shown[at + 1].startswith("      Show the K most probable")


def test_the_program_lists_its_commands(coop, monkeypatch):
    shown = screen(coop, monkeypatch, 80, "--help")
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert shown.index("Commands") < shown.index("Options")
