"""Usage errors: one line each, exit code 2, whichever the option and however hostile its value."""

import ast
from pathlib import Path

import pytest

from coopcli.cli import command, console

HUGE = "1" + "0" * 30


@pytest.mark.parametrize("arguments, words", [
    (("fit", "--device", "x"), ('unknown device "x"; choose auto, cpu or cuda',)),
    (("fit", "--position", "top"), ('unknown position "top"; choose end, middle or front',)),
    (("zeroshot", "--on-error", "pass"), ('unknown on-error "pass"; choose fail or skip',)),
    (("interpret", "run", "--metric", "manhattan"), ('unknown metric "manhattan"; choose euclidean or cosine',)),
    (("fit", "--lr", "nan"), ("--lr",)),
    (("fit", "--lr", "inf"), ("--lr: inf is not a finite number",)),
    (("fit", "--weight-decay", "1e999"), ("--weight-decay",)),
    (("predict", "run", "image", "--threshold", "nan"), ("--threshold",)),
    (("fit", "--seed", HUGE), ("--seed", "31 digits")),
    (("fit", "--seed", "9" * 5000), ("--seed",)),
    (("fit", "--max-pixels", HUGE), ("--max-pixels", "31 digits")),
    (("predict", "run", "image", "--top", HUGE), ("--top", "31 digits")),
    (("fit", "--context-length", "1000000000"), ("--context-length", "1000")),
    (("fit", "--shots", HUGE), ("--shots", "from 1 to 999999")),
    (("fit", "--views", "9" * 5000), ("--views",)),
    (("sweep", "--seeds", HUGE), ("--seeds", "18 digits")),
    (("sweep", "--shots", "1," + HUGE), ("--shots", "999999")),
    (("fit", "a\0b"), ("data", "null character")),
    (("zeroshot", ".", "--images", "a\0b"), ("--images", "null")),
    (("ensemble", ".", "--template", "{}\0"), ("--template", "null character")),
    (("fit", "--epochs", "x"), ('--epochs: must be a valid integer, not "x"',)),
    (("predict", "run", "image", "--top", "0"), ('--top: must be greater than or equal to 1, not "0"',)),
    (("predict", "run", "image", "--threshold", "2"), ('--threshold: must be less than or equal to 1, not "2"',)),
    (("fit", "--lr", "-1"), ('--lr: must be greater than or equal to 0, not "-1"',)),
    (("fit", "--batch-size", "x" * 5000), ("--batch-size: must be a valid integer", 'x..."')),
    (("sweep", "--seeds", "1,x"), ('--seeds: "x" is not a seed', '(of "1,x")')),
    (("sweep", "--methods", "x"), ('--methods: unknown value "x"; choose among zeroshot',)),
    (("fit", "--nonsense"), ("no such option: --nonsense",)),
    (("eval",), ("missing argument 'PROMPT'",)),
    (("evla", "run"), ("no such command 'evla'",)),
    (("fit", "--device", "\x1b[2J[red]\u202e"), ('unknown device "\\x1b[2J[red]\\u202e"',)),
])  # fmt: skip
def test_usage_errors_are_one_line(coop, arguments, words):
    code, out, err = coop(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("coop: ") and "--help" in err and not console.UNPRINTABLE.search(err[:-1])
    for word in words:
        assert word in err


def test_surrogates_in_options_are_one_line(coop, photos):
    """As the shell passes bytes that are not UTF-8."""
    for arguments in (
        ("--template", "a {} \udcff"),
        ("--classnames", "\udcff"),
        ("--revision", "\udcff"),
        ("--split", "\ud800"),
    ):
        code, out, err = coop("zeroshot", photos, "--model", "mini", *arguments)
        assert "COOP_DEBUG" not in err and (code == 0 or (out == "" and err.splitlines()[-1].startswith("coop: "))), err


def test_finite_numbers_and_plain_texts_pass():
    assert [command.problem_of(value, "data") for value in (None, 1, 2**63 - 1, 0.5, "text", Path("a"), True, "\udcff")] == [
        None
    ] * 8
    assert command.problem_of("\udcff", "template") and not command.problem_of("é", "template")
    assert all(map(command.problem_of, (float("nan"), float("inf"), -float("inf"), 2**63, -(2**70), "a\0", Path("a\0"))))


def test_only_the_console_prints():
    """One way out: no module of the command line prints, or makes a table, but console.py."""
    folder = Path(console.__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in ("print", "Table", "Console"), f"{path.name}:{node.lineno}"
                assert getattr(node.func, "attr", "") not in ("print", "add_row", "echo", "secho"), f"{path.name}:{node.lineno}"
