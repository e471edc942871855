"""What the pages tell people to type works: every snippet is run on drawn pictures, with `mini` in place of OpenAI's CLIP.

A snippet that cannot run here has `<!-- not run: reason -->` above it; of that, and of commands within the text, the
options are checked.
"""

import filecmp
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from conftest import ran

from coopcli.cli.app import app
from coopcli.demo.tasks import write_task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(coop [a-z]+ [^`]*)`")
NAMED = re.compile(r"\b(?:coopcli|tests|tools|examples|benchmarks)/[a-z0-9_/]+\.[a-z]+\b")
LINKED = re.compile(r"\]\((?!https?:)([^)#]+)")
COMMANDS = typer.main.get_command(app).commands
CLASSES = ("red", "green", "blue")
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PROSE = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks/README.md"]


def command_lines(snippet):
    """The lines of a shell snippet as lists of words: continued lines joined, comments left out."""
    lines = snippet.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def in_seconds(words):
    """A coop command, with the embedded model and few epochs where it says nothing of either."""
    options = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
    short = {"--epochs": "2", "--warmup-epochs": "1", "--views": "1", "--jobs": "1"}
    if words[1] in ("fit", "zeroshot", "ensemble", "sweep"):
        short["--model"] = "mini"
    return words + [word for option, value in short.items() if option in options - set(words) for word in (option, value)]


def parse(words):
    """Have a command's own parser read the words: the options exist and have their values."""
    command = COMMANDS[words[1]]
    command.make_parser(command.context_class(command)).parse_args(words[2:])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """photos/ and other_photos/ with a folder for each class, inbox/ with pictures of none."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, count in (("photos", 18), ("other_photos", 2)):
        write_task(folder / "all", "background", count, seed=(count,))
        for label in CLASSES:
            shutil.copytree(folder / "all" / label, folder / name / label)
        shutil.rmtree(folder / "all")
    (folder / "inbox").mkdir()
    for i, label in enumerate(CLASSES):
        shutil.copy(folder / "other_photos" / label / "000.png", folder / "inbox" / f"{i}.png")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_snippets_run(page, coop, drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    names = {}
    for not_run, language, snippet in BLOCK.findall(page.read_text("utf-8")):
        if not_run:
            continue
        monkeypatch.chdir(tmp_path)  # each snippet begins where the page does
        snippet = re.sub("(openai/)?clip-vit-base-patch16", "mini", snippet)
        if language == "python":
            exec(compile(snippet, str(page), "exec"), names)
            continue
        for words in command_lines(snippet):
            match words:
                case ["cd", folder]:
                    monkeypatch.chdir(folder)
                case ["cmp", first, second]:
                    assert filecmp.cmp(first, second, shallow=False)
                case ["coop", *_, ">", file]:
                    Path(file).write_text(ran(coop(*globbed(in_seconds(words[:-2])[1:]))), "utf-8")
                case ["coop", *_]:
                    ran(coop(*globbed(in_seconds(words)[1:])))
                case _:
                    pytest.fail(f"{page.name}: no test can run {shlex.join(words)}; mark its block: <!-- not run: reason -->")


def globbed(words):
    """What a shell makes of `*`."""
    return [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_other_commands_parse(page):
    text = page.read_text("utf-8")
    not_run = [snippet for mark, language, snippet in BLOCK.findall(text) if mark and language == "sh"]
    inline = [" ".join(command.split()) for command in INLINE.findall(text)]  # a command may go on in the next line of text
    for words in [line for snippet in (*not_run, *inline) for line in command_lines(snippet)]:
        if words[0] == "coop" and words[1] in COMMANDS:
            parse(words)
        else:
            assert words[0] != "coop" or words[1].startswith("-"), f"{page.name}: no such command: {shlex.join(words)}"


@pytest.mark.parametrize("wrong", ["coop fit photos --shot 16", "coop eval run --epochs 3", "coop fit --shots"])
def test_wrong_options_are_noticed(wrong):
    with pytest.raises(Exception, match=r"[Nn]o such option|requires an argument"):
        parse(wrong.split())


def missing_files(text, folder):
    """The files that a page in this folder names or links to and that are not there."""
    wanted = {ROOT / name for name in NAMED.findall(text)} | {folder / target for target in LINKED.findall(text)}
    return sorted(str(file.resolve().relative_to(ROOT)) for file in wanted if not file.exists())


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_and_linked_files_exist(page):
    assert missing_files(page.read_text("utf-8"), page.parent) == []


def test_each_picture_that_the_script_makes_is_shown():
    from screenshots import IMAGES, SCREENS

    shown = {
        Path(target).name for page in PAGES for target in LINKED.findall(page.read_text("utf-8")) if target.endswith(".svg")
    }
    assert shown == {f"{screen}.svg" for screen in SCREENS} == {path.name for path in IMAGES.iterdir()}


def test_a_missing_file_is_noticed():
    text = "`tests/test_docs.py`, `tests/clip/test_gone.py`, [here](../README.md#x), [not here](gone.md), [web](https://a.b/c)"
    assert missing_files(text, ROOT / "docs") == ["docs/gone.md", "tests/clip/test_gone.py"]


def test_the_map_of_the_code_holds():
    """Each name in README's map is defined in the file that the row links to."""
    rows = re.findall(r"^\|[^|]+\| (`.+) in \[([a-z_/]+\.py)\]", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 7
    for names, file in rows:
        code = (ROOT / file).read_text("utf-8")
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), f"{file} defines no {name}"


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs mkdocs: pip install '.[docs]'")
def test_site_builds(tmp_path):
    """In strict mode every link and every page of the menu must be there."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert 'href="tutorial/"' in home and 'href="reliability/"' in home
