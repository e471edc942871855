import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer
from conftest import failed, ran
from hypothesis import given
from hypothesis import strategies as st

from coopcli.cli import options
from coopcli.errors import UsageError
from coopcli.settings import changes, read_settings, to_toml

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
values = st.one_of(scalars, st.lists(scalars, max_size=3))
tables = st.dictionaries(texts, values, max_size=5)


@given(st.dictionaries(texts, st.one_of(values, tables), max_size=5))
def test_toml_comes_back_as_it_went(settings):
    assert tomllib.loads(to_toml(settings)) == settings


def test_none_paths_and_tuples():
    settings = {"data": Path("a/b"), "lr": None, "template": ("{}", "a {}"), "resolved": {"warm": None, "n": 1}}
    assert to_toml(settings) == 'data = "a/b"\ntemplate = ["{}", "a {}"]\n\n[resolved]\nn = 1\n'


def test_a_path_that_is_no_unicode_is_one_line():
    with pytest.raises(UsageError, match=r"udcff.*rename"):
        to_toml({"data": "photos\udcff"})


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r'"nowhere.toml" cannot be read: No such file'):
        read_settings(Path("nowhere.toml"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path)
    for wrong in (b"shots = ", b"shots = 1\nshots = 2", b"\xff", b"a = " + b"[" * 5000):
        (tmp_path / "wrong.toml").write_bytes(wrong)
        with pytest.raises(UsageError, match=r'wrong.toml" is not valid TOML'):
            read_settings(tmp_path / "wrong.toml")


def test_changes():
    before = {"lr": 0.002, "csc": False, "init": None, "resolved": {"fingerprint": "a"}}
    assert changes(before, before) == changes(read(before), before) == changes(before, before | {"init": None}) == []
    after = {"lr": 0.1, "csc": False, "resolved": {"fingerprint": "b"}, "seed": 1}
    assert changes(before, after) == ["lr: 0.002 -> 0.1", "fingerprint: a -> b", "seed: None -> 1"]
    assert changes({"template": ["{}"]}, {"template": ("{}",)}) == []


def read(settings):
    return tomllib.loads(to_toml(settings))


# --------------------------------------------------------------------------------------------------------- --config


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a command is told, given the text of run.toml and a command line."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command(
        data: options.DataArgument = ".",
        context_length: Annotated[int, typer.Option("--context-length", min=1)] = 16,
        lr: Annotated[float | None, typer.Option("--lr")] = None,
        shots: Annotated[str, typer.Option("--shots")] = "16",
        csc: Annotated[bool, typer.Option("--csc")] = False,
        position: Annotated[options.Position, typer.Option("--position")] = options.Position.end,
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


def test_a_file_says_what_the_command_line_does_not(told, capsys):
    assert told("") == dict(zip(KEYS, (".", 16, None, "16", False, "end", None, None), strict=True))
    assert told(ALL) == dict(zip(KEYS, ("photos", 8, 0.001, "4", True, "front", Path("run"), ["{}", "a {}"]), strict=True))
    line = ["other", "--context-length", "2", "--lr", "1", "--shots", "all", "--position", "end", "-o", "o", "--template", "{}"]
    assert told(ALL, *line) == dict(zip(KEYS, ("other", 2, 1.0, "all", True, "end", Path("o"), ["{}"]), strict=True))
    assert told(to_toml({"data": "photos", "context-length": 8, "lr": None}))["context_length"] == 8
    assert capsys.readouterr().err == ""


def test_unknown_keys_are_noted(told, capsys):
    assert told("context_length = 8\n[elsewhere]\n")["context_length"] == 16
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith('note: "run.toml": "context_length" is no option') and 'did you mean "context-length"?' in first
    assert second == 'note: "run.toml": "elsewhere" is no option of this command and does nothing'
    told('config = "run.toml"')  # one file, not a chain of them
    assert '"config" is no option' in capsys.readouterr().err


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
def test_wrong_values_are_one_line_with_file_and_key(told, text, why):
    with pytest.raises(UsageError) as error:
        told(text)
    key = text.strip("[]").split()[0]
    assert str(error.value).startswith(f'"run.toml": {key} = ') and why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_settings_file_that_is_not_there(told):
    with pytest.raises(UsageError, match=r'settings file "no.toml" cannot be read'):
        told("", config="no.toml")


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
