"""Progress: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import io

import pytest
import torch
from rich.console import Console

from coopcli.cli import console
from coopcli.cli.console import Bars, Lines, duration, progress, wrapped
from coopcli.learned.scores import Evaluation, score


@pytest.fixture(autouse=True)
def normal():
    yield
    console.set_level(console.NORMAL)


def test_plain_lines_come_by_the_tenth_or_the_minute(capsys):
    lines = Lines("epochs", now=0.0, share=0.0)
    lines.update(1, 10, now=5.0)  # too early to say anything
    assert capsys.readouterr().err == ""
    lines.update(2, 10, now=20.0)
    assert capsys.readouterr().err == "epochs: 2 of 10 (20 %), about 80 s left\n"
    lines.update(2.5, 10, now=40.0)
    assert capsys.readouterr().err == ""
    lines.update(2.6, 10, now=81.0)  # within an epoch, after a minute
    assert capsys.readouterr().err == "epochs: 2 of 10 (26 %), about 4 min left\n"
    lines.update(10, 10, now=300.0)
    assert capsys.readouterr().err == ""  # what follows says that it is done


def test_a_resumed_step_is_estimated_by_what_was_done_now(capsys):
    lines = Lines("epochs", now=0.0, share=0.5)
    lines.update(60, 100, now=100.0)
    assert capsys.readouterr().err == "epochs: 60 of 100 (60 %), about 7 min left\n"


def test_what_is_soon_done_says_nothing_and_quiet_says_nothing(capsys, monkeypatch):
    with progress() as live:
        Bars(live).update("images", 5, 10)
    monkeypatch.setattr(console, "FIRST_LINE", 0)
    console.set_level(console.QUIET)
    with progress() as live:
        bars = Bars(live)
        for done in range(11):
            bars.update("images", done, 10)
        console.say("note")
    assert capsys.readouterr().err == ""
    console.set_level(console.NORMAL)
    with progress() as live:
        bars = Bars(live)
        for done in range(11):
            bars.update("images", done, 10)
    assert capsys.readouterr().err.count("images: ") == 9


def test_of_very_many_classes_the_worst_are_shown(capsys, monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=80, color_system=None))
    labels = torch.tensor([0, 1, 1, 2500, 2500, 2500])
    metrics = score(labels, torch.tensor([0, 3, 1, 3, 3, 2500]), 3000)
    console.show_evaluation("data", Evaluation(tuple(f"c{k}" for k in range(3000)), (), [], [], metrics))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "data", "top-1 50.0 % macro average 61.1 % images 6",
        "the 3 worst of 3 classes with images; --json gives all 3,000",
        "class images accuracy %", "c2500 3 33.3", "c1 2 50.0", "c0 1 100.0", "",
        "true class taken for images", "c2500 c3 2", "c1 c3 1",
    ]  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_what_takes_long_is_foretold_once_with_the_way_out(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with progress() as live:
        bars = Bars(live)
        for step in (1, 2, 3):
            clock.now += 14  # seconds of a step of SigLIP on a CPU
            bars.training_step(0, 200, step, 5)
            bars.training_step(0, 200, step, 5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "to go" in line]
    assert "epochs: about 3 h 53 min to go" in line
    assert line.endswith("--recipe fast takes 200 steps instead of 1000")


def test_the_fast_recipe_is_not_advised_to_itself(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with progress() as live:
        bars = Bars(live)
        for step in range(4):
            bars.training_step(step, 200, 0, 1)
            clock.now += 140
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "to go" in line]
    assert line.endswith("to go")


def test_what_is_short_or_just_begun_is_not_foretold(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with progress() as live:
        bars = Bars(live)
        for done in range(100):
            bars.update("images", done, 100)
            clock.now += 2.9  # 5 minutes in all, less at any time
        clock.now = 1000.0
        for done, now in ((0, 1000), (1, 1004)):  # slow, but too early to tell
            clock.now = now
            bars.update("others", done, 100000)
    assert "to go" not in capsys.readouterr().err


def test_training_steps_move_the_bar_within_an_epoch(capsys, monkeypatch):
    monkeypatch.setattr(console, "FIRST_LINE", 0)
    monkeypatch.setattr(console, "STEP_EVERY", 0)
    with progress() as live:
        bars = Bars(live)
        for step in range(1, 101):
            bars.training_step(0, 2, step, 100)
    assert capsys.readouterr().err.count("epochs: 0 of 2") == 4


@pytest.mark.parametrize("seconds, words", [(3, "3 s"), (89, "89 s"), (180, "3 min"), (7500, "2 h 05 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_terminal_breaks_lines_between_words_and_commands_nowhere():
    text = "note: none of these 243 images fit; see `coop fit --help` for more, or (`hf auth login`) first"
    assert wrapped(text, 30).split("\n") == [
        "note: none of these 243 images", "fit; see `coop fit --help` for", "more, or (`hf auth login`)", "first",
    ]  # fmt: skip
    assert wrapped(text, 200) == text
    assert wrapped("results:   top-1 90.5 %   macro average", 24, indent="  ") == "results:   top-1 90.5 %\n  macro average"
    resumed = '"runs/half" is not done; resume it: coop fit --config runs/half/settings.toml -o runs/half'
    assert wrapped(resumed, 20).split("\n")[-1] == "coop fit --config runs/half/settings.toml -o runs/half"
    assert wrapped("photos/a-very-long-name-of-a-folder/0.png", 10) == "photos/a-very-long-name-of-a-folder/0.png"
    assert wrapped("one\n\ntwo", 10) == "one\n\ntwo"


ROWS = [("residential_buildings", "7", "100.0", ""), ("highway_or_road", "7", "85.7", "residential_buildings (1)")]
HEADINGS = ("class", "images", "accuracy %", "most often taken for")


def printed(monkeypatch, width, terminal=True, **options):
    screen = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(console, "out", screen)
    console.table(HEADINGS, ROWS, left=(0, 3), **options)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_cuts_nothing_and_keeps_to_the_width(monkeypatch, width):
    shown = printed(monkeypatch, width)
    assert "…" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    for row in ROWS:
        assert all(cell.split(" ")[0] in shown for cell in row)


def test_a_narrow_terminal_has_a_paragraph_for_each_row(monkeypatch):
    assert printed(monkeypatch, 40).splitlines() == [
        "residential_buildings", "  images 7   accuracy % 100.0",
        "highway_or_road", "  images 7   accuracy % 85.7", "  most often taken for", "    residential_buildings (1)",
    ]  # fmt: skip
    assert printed(monkeypatch, 80).splitlines()[1].startswith("residential_buildings       7       100.0")


def test_names_that_may_fold_keep_the_table(monkeypatch):
    lines = printed(monkeypatch, 50, fold=(0, 3)).splitlines()
    assert lines[-1].split() != ["taken", "for", "residential_buildings", "(1)"] and max(map(len, lines)) <= 50
    assert any(line.split()[:1] == ["class"] and "accuracy %" in line for line in lines)


def test_a_pipe_has_each_row_in_one_line(monkeypatch):
    heading, *rows = printed(monkeypatch, 30, terminal=False).splitlines()
    assert heading.split() == " ".join(HEADINGS).split() and len(rows) == 2
    assert rows[1].split() == ["highway_or_road", "7", "85.7", "residential_buildings", "(1)"]
