"""Names that would move the cursor, colour the line or turn its direction, through every command."""

import csv
import io

import pytest
from conftest import learned_prompt, ran, write_picture

from coopcli.cli import console

NAMES = ("a\n\x1b[2J\x9b1A", "[red]b[bold] :apple:", "c\u202e\u2066é\u200f")
ESCAPED = ("a\\n\\x1b[2J\\x9b1A", "[red]b[bold] :apple:", "c\\u202e\\u2066é\\u200f")
QUICK = ["--model", "mini", "--recipe", "fast", "--epochs", "1", "--views", "1"]


@pytest.fixture
def hostile(tmp_path, mini, monkeypatch):
    """Pictures in folders of these names, and a prompt of these classes, in a folder that is named no better."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(console.out, "_width", 300)
    for k, name in enumerate(NAMES):
        for i in range(3):
            write_picture(tmp_path / "data \x1b[31m" / name / f"\x1b{i}.png", (80 * k, 30, 200), seed=10 * k + i)
    learned_prompt(mini, NAMES, csc=True).save(tmp_path / "run [red]\x1b" / "prompt.safetensors")


DATA, RUN = "data \x1b[31m", "run [red]\x1b"
COMMANDS = [
    ("fit", DATA, "-n", "1", *QUICK, "-o", "new \x1b", "--verbose"), ("eval", RUN, DATA), ("zeroshot", DATA, "-m", "mini"),
    ("ensemble", DATA, "-m", "mini", "--template", "{} \x1b"), ("interpret", RUN), ("interpret", RUN, RUN),
    ("predict", RUN, DATA), ("predict", RUN, DATA, "--top", "2", "--threshold", "1"), ("predict", RUN, DATA, "--json"),
    ("transfer", RUN, DATA, "--no-plot", "-o", "moved \x1b"), ("cache",),
    ("sweep", DATA, "-m", "mini", "--methods", "zeroshot", "-n", "1", "--no-plot", "-o", "grid \x1b"),
]  # fmt: skip


def test_every_command_shows_names_and_no_more(coop, hostile):
    for command in COMMANDS:
        code, out, err = coop(*command)
        assert code == 0, (command, err)
        assert not console.UNPRINTABLE.search((out + err).replace("\n", "")), command
        if command[0] in ("eval", "zeroshot", "interpret"):
            assert all(name in out for name in ESCAPED), command


@pytest.mark.parametrize("command", [
    ("fit", DATA + "\u202e"), ("eval", RUN + "\x9b", DATA), ("eval", RUN, DATA + "\x1b"), ("predict", RUN, "\x1b"),
    ("interpret", "\x1b"), ("zeroshot", DATA, "-m", "\x1b"), ("zeroshot", DATA, "--split", "\x1b"), ("report", "\x1b"),
    ("fit", "--config", "\x1b"), ("import", "\x1b", "--classnames", "\u2066"), ("transfer", RUN, "\u202e"), ("export", "\x1b"),
    ("push", "\x1b", "\x1b/b"), ("cache", "\x1b"), ("sweep", DATA, "--position", "\x1b"), ("\x1b",), ("fit", "--\x1b"),
])  # fmt: skip
def test_errors_show_names_and_no_more(coop, hostile, command):
    code, out, err = coop(*command)
    assert code in (1, 2) and out == ""
    assert not console.UNPRINTABLE.search(err.replace("\n", "")) and err.splitlines()[-1].startswith("coop: ")
    assert "COOP_DEBUG" not in err, err


def test_csv_is_as_it_stands_in_a_pipe_and_escaped_on_a_terminal(coop, hostile, monkeypatch):
    piped = list(csv.DictReader(io.StringIO(ran(coop("predict", RUN, DATA, "--csv")))))
    assert {row["class"] for row in piped} <= set(NAMES) and len(piped) == 9
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    shown = list(csv.DictReader(io.StringIO(ran(coop("predict", RUN, DATA, "--csv")))))
    assert [ESCAPED[NAMES.index(row["class"])] for row in piped] == [row["class"] for row in shown]
    assert not any(console.UNPRINTABLE.search(row["image"]) for row in shown)
