"""The real command in unfriendly surroundings: no home, no network, odd terminals, a reader that goes away."""

import contextlib
import io
import json
import os
import pty
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import write_picture
from PIL import Image

from coopcli.cli import console
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import ImageItem
from coopcli.learned.interpret import NearToken
from coopcli.learned.prompt import LearnedPrompt, load_prompt
from coopcli.learned.scores import Evaluation, score

COOP = [sys.executable, "-m", "coopcli"]
TABLE = ["zeroshot", "photos", "--model", "mini"]
HOSTILE = "a\n\x1b[2J\x9b1A\u202e[/b][red]é"
ESCAPED = "a\\n\\x1b[2J\\x9b1A\\u202e[/b][red]é"


@pytest.fixture
def coop(tmp_path):
    """Run a command: (exit code, stdout, stderr). The environment is the few variables given, and no more."""

    def run(*arguments, stdout=subprocess.PIPE, stdin=None, **variables):
        path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [*COOP, *arguments], env=path | variables, cwd=tmp_path, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
        )
        err = done.stderr.decode()
        assert "Traceback" not in err and "Exception ignored" not in err
        return done.returncode, (done.stdout or b"").decode(), err

    return run


@pytest.fixture
def no_home(tmp_path):
    """Where no folder can be made, not even by root."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "home")


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate(("é", "中")):
        write_picture(tmp_path / "photos" / name / "0.png", seed=k)


@pytest.fixture
def hostile_prompt(tmp_path, mini):
    """Of the embedded model, with names that would change the screen."""
    LearnedPrompt(
        context=torch.zeros(300, 1, mini.text_encoder.width),
        settings=ContextSettings(1, "end", True),
        class_names=(HOSTILE, *map(str, range(299))),
        folders=(HOSTILE, *map(str, range(299))),
        model="mini",
        revision=None,
        fingerprint=mini.fingerprint,
        training={},
    ).save(tmp_path / "hostile.safetensors")
    assert load_prompt(tmp_path / "hostile.safetensors").class_names[0] == HOSTILE


# ------------------------------------------------------------------------------------------- home, network, encoding


def test_without_a_home_and_with_an_ascii_terminal(coop, photos, no_home):
    code, out, err = coop(*TABLE, HOME=no_home, PYTHONIOENCODING="ascii", LC_ALL="C", COLUMNS="40", HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert "top-1" in out and "\\xe9" in out and "\\u4e2d" in out and out.isascii() and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80  # 40, and the few words that are not folded
    assert err.count("\n") == 2 and "continuing without it" in err and "data: photos: 2 classes" in err


def test_json_in_any_encoding_and_no_network_for_a_model_that_is_here(coop, photos, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # a name that is asked for would wait for its answer
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        variables = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), address)
        variables |= {"PYTHONIOENCODING": "ascii", "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        code, out, err = coop(*TABLE, "--json", **variables)
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert code == 0 and err.startswith("data: photos: 2 classes, ") and err.count("\n") == 1
    assert out.isascii() and set(json.loads(out)["per_class"]) == {"é", "中"}
    assert (tmp_path / "xdg" / "coop" / "features.sqlite").exists()  # and HOME is not set


def test_retries_of_the_hub_are_not_told():
    code = (
        "from coopcli.cli.console import show_warnings; show_warnings()\n"
        "from huggingface_hub.utils import logging; logging.get_logger('huggingface_hub.utils').warning('Retrying in 1s')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_cache_command_without_a_home(coop, no_home, tmp_path):
    code, out, err = coop("cache", HOME=no_home)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "file/home" in err
    code, out, err = coop("cache", XDG_CACHE_HOME=str(tmp_path / "ö"), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert code == 0 and "\\xf6" in out and err == ""


# ---------------------------------------------------------------------------------------------------------- streams


def test_a_reader_that_goes_away(coop, hostile_prompt, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for command in (["cache"], ["cache", "--json"], ["--help"], ["interpret", "hostile.safetensors"]):
            code, _, err = coop(*command, stdout=writer, COOP_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
            assert (code, err) == (1, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full(coop, tmp_path):
    with Path("/dev/full").open("w") as full:
        code, _, err = coop("cache", stdout=full, COOP_CACHE=str(tmp_path / "cache"))
    assert (code, err) == (1, "coop: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    environment = os.environ | {"COOP_CACHE": str(tmp_path / "cache")}

    def shell(*arguments):
        line = " ".join([*COOP, *arguments, closed])
        return subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)

    done = shell("cache")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("0 features") == (">&-" not in closed.split())
    done = shell("interpret", str(tmp_path / "nothing"))
    assert done.returncode == 2 and done.stdout == ""  # an error is never data
    assert done.stderr.count("\n") == ("2>&-" not in closed)


def on_a_terminal(tmp_path, *arguments, **variables):
    """What a command writes to a terminal, on stdout and stderr together."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")} | variables
    process = subprocess.Popen([*COOP, *arguments], env=environment, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    told = b""
    try:
        while part := os.read(ours, 65536):
            told += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, told
    return told.decode()


def test_a_dumb_terminal_gets_plain_text_whatever_the_names_are(hostile_prompt, tmp_path):
    told = on_a_terminal(tmp_path, "interpret", "hostile.safetensors", TERM="dumb", COLUMNS="200")
    assert ESCAPED in told and "\x1b" not in told and "\x9b" not in told


def test_no_color_means_no_styles(hostile_prompt, tmp_path):
    """Only the line that tells what is being loaded comes and goes."""
    told = on_a_terminal(tmp_path, "interpret", "hostile.safetensors", TERM="xterm-256color", NO_COLOR="1", COLUMNS="200")
    assert ESCAPED in told and "\x1b[1m" not in told and "\x1b[3" not in told
    assert "\x1b" not in told[told.index(ESCAPED) :]


# ------------------------------------------------------------------------------------------------- names that are shown


def test_names_neither_move_the_cursor_nor_break_lines(capsys, monkeypatch):
    monkeypatch.setattr(console.out, "width", 200)
    items = tuple(ImageItem(str(label), label, bytes) for label in (0, 1, 1))
    evaluation = Evaluation(
        (HOSTILE, "\ud800"), items, [1, 0, 1], [0.5] * 3, score(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 2)
    )
    console.show_evaluation(HOSTILE, evaluation)
    console.say(f"first\n{HOSTILE[2:]}")
    out, err = capsys.readouterr()
    assert out.count(ESCAPED) == 4 and out.count("\\ud800") == 3
    assert not console.UNPRINTABLE.search((out + err).replace("\n", ""))
    assert len(out.splitlines()) == 10 and err == f"first\n{ESCAPED[3:]}\n"


def test_warnings_are_one_line(capsys):
    import logging

    console.show_warnings()
    logging.getLogger("coopcli.data.load").warning("class %s", HOSTILE)
    assert capsys.readouterr().err == f"note: class {ESCAPED}\n"


def test_json_keeps_names_and_shows_none(capsys):
    console.print_json({"class": HOSTILE, "\ud800": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"class": HOSTILE, "\ud800": "é"}
    assert not console.UNPRINTABLE.search(out.replace("\n", ""))
    console.print_json({"class": "é中"})
    assert "é中" in capsys.readouterr().out


@pytest.mark.parametrize("pieces", [1, 3, 1000])
@pytest.mark.parametrize("name", ["é中", HOSTILE])
def test_json_in_parts_is_that_of_the_whole(capsys, monkeypatch, pieces, name):
    """And an object of a dataclass is that of its fields."""
    monkeypatch.setattr(console, "JSON_PIECES", pieces)
    tokens = [NearToken(name, 7, 0.5), NearToken("b", 8, 1.5)]
    console.print_json({"near": [tokens, []], "": None})
    expected = {"near": [[asdict(token) for token in tokens], []], "": None}
    assert capsys.readouterr().out == json.dumps(expected, indent=2, ensure_ascii=name == HOSTILE) + "\n"


def test_json_is_printed_where_there_is_no_encoding():
    """Into a StringIO, as `coop demo` reads what its commands give."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        console.print_json({"class": "é中"})
    assert json.loads(text.getvalue()) == {"class": "é中"}


def test_an_error_is_one_line_of_plain_text(tmp_path, monkeypatch, capsys):
    from coopcli import __main__

    monkeypatch.setattr(sys, "argv", ["coop", "interpret", str(tmp_path / HOSTILE)])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ESCAPED in err and not console.UNPRINTABLE.search(err[:-1])


# ---------------------------------------------------------------------------------------------------- images and paths


@pytest.fixture
def listed(tmp_path):
    """A table that Windows wrote, of 70 images: enough for worker processes. One is broken, one makes Pillow talk."""
    rows = [f".\\{colour}\\{i}.png;{colour}" for colour in ("red", "blue") for i in range(35)]
    for k, row in enumerate(rows):
        write_picture(tmp_path / row.partition(";")[0][2:].replace("\\", "/"), seed=k)
    (tmp_path / "red" / "7.png").write_bytes(b"")
    palette = Image.open(tmp_path / "red" / "8.png").convert("P")
    palette.save(tmp_path / "red" / "8.png", transparency=bytes(range(256)))
    (tmp_path / "list.csv").write_text("\n".join(["File;Class", *rows]))


def test_a_table_of_windows_with_a_broken_image(coop, listed, tmp_path):
    variables = {"COOP_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    code, out, err = coop("zeroshot", "list.csv", "--model", "mini", "--json", **variables)
    assert code == 0 and json.loads(out)["n"] == 69
    opening, note = (line for line in err.splitlines() if not line.startswith("images: "))  # progress, on a slow machine
    assert opening == 'data: list: 2 classes, 70 images; columns: image "File", label "Class"'
    assert note == 'note: skipped 1 of 70 images that cannot be read; the first: image "red/7.png" cannot be read: it is empty'
    code, _, err = coop("zeroshot", "list.csv", "--model", "mini", "--max-pixels", "1000", "--no-cache", **variables)
    assert code == 1 and "none of 70 images can be read" in err and "(1600 pixels) exceeds limit of 1000 pixels" in err


def test_fit_stops_at_a_broken_image_unless_told_otherwise(coop, listed, tmp_path):
    fit = ["fit", "list.csv", "--model", "mini", "--shots", "all", "--epochs", "1", "--views", "1", "-o", "run"]
    variables = {"COOP_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    code, out, err = coop(*fit, **variables)
    assert (code, out) == (1, "") and 'coop: image "red/7.png" cannot be read: it is empty' in err.splitlines()
    assert not (tmp_path / "run").exists()
    code, _, err = coop(*fit, "--on-error", "skip", **variables)
    assert code == 0 and "skipped 1 of 70 images" in err
    assert len(json.loads((tmp_path / "run" / "fewshot.json").read_text())["train"]) == 69


# ------------------------------------------------------------------------------------------------- signals and streams


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_at_once_and_without_a_word(photos, tmp_path, number):
    environment = os.environ | {"COOP_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [*COOP, "fit", "photos", "--model", "mini", "--shots", "all", "--epochs", "1000000", "--views", "1", "-o", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.time() + 300
    while not (tmp_path / "run" / "log.jsonl").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == -number and "Traceback" not in err and "coop: " not in err
    with pytest.raises(ProcessLookupError):  # of its session nobody is left
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_predictions_to_a_stream_a_device_and_a_link(coop, photos, tmp_path):
    variables = {"COOP_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    code, out, _ = coop(*TABLE, "--predictions", "/dev/stdout", **variables)
    assert code == 0 and "image,label,prediction,probability,correct\n" in out and "top-1" in out
    before = Path("/dev/null").stat()
    code, _, err = coop(*TABLE, "--predictions", "/dev/null", **variables)
    assert code == 0 and Path("/dev/null").stat().st_ino == before.st_ino and stat.S_ISCHR(before.st_mode), err
    (tmp_path / "kept.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("kept.csv")
    code, _, err = coop(*TABLE, "--predictions", "link.csv", **variables)
    assert code == 0 and (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "kept.csv").read_text().startswith("image,label,prediction")


# ------------------------------------------------------------------------------------------------- bare containers

# A container without a home, without an entry for its user in passwd, whose folders for temporary files, shared memory and
# the current one cannot be written: a mount namespace of that kind.
BARE = """
mount -t tmpfs none /mnt && cp -r photos /mnt && mkdir /mnt/out && mount --bind /mnt/photos /mnt/photos &&
mount -o remount,ro,bind /mnt/photos && mount -t tmpfs -o ro none /dev/shm || exit 99
for place in /tmp /var/tmp /usr/tmp; do [ ! -d $place ] || mount -t tmpfs -o ro none $place || exit 99; done
cd /mnt/photos && unshare -U --map-user=12345 true && exec unshare -U --map-user=12345 "$@" || exit 99
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_bare_container(tmp_path):
    if any(str(place).startswith(("/tmp/", "/mnt/")) for place in (sys.prefix, sys.base_prefix, Path(__file__))):
        pytest.skip("Python or coop lies in a folder that the test hides")
    for k in range(70):  # as many as are decoded in processes elsewhere
        write_picture(tmp_path / "photos" / "ab"[k % 2] / f"{k}.png", seed=k, size=(12, 12))
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", BARE, "sh"]
    command = ["sweep", ".", "--methods", "zeroshot,coop", "--shots", "1", "--seeds", "1,2", "--jobs", "2", "-o", "/mnt/out/s"]
    done = subprocess.run(
        [*namespace, *COOP, *command, "--model", "mini"], env=given, cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode in (1, 99) and "coop: " not in done.stderr:
        pytest.skip("this machine lets no test mount anything")
    assert done.returncode == 0 and "coop" in done.stdout, done.stderr
    assert "this user has no home folder; set COOP_CACHE" in done.stderr and "COOP_DEBUG" not in done.stderr
    assert "doing one experiment at a time" in done.stderr
    notes = [line for line in done.stderr.splitlines() if not line.startswith(("note: ", "data: ", "results: ", "images: "))]
    assert notes == []


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_leave_their_core_to_others(given, expected):
    """libgomp reads the variable when PyTorch loads it, so it must be set by then."""
    code = """
import os, sys
import coopcli.__main__
assert "torch" not in sys.modules
sys.argv[1:] = ["--version"]
coopcli.__main__.main()
print(os.environ.get("GOMP_SPINCOUNT"))
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment | given)
    assert done.stdout.split()[-1] == expected
