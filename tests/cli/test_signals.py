"""Real commands, ended from outside while their worker processes decode: nobody outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import COLOURS, learned_prompt, write_picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode")

# `coop`, with decoding that does not end; in workers, which are forked.
BUSY = """
import sys, time
from pathlib import Path
import coopcli.clip.image_features as features
from coopcli.__main__ import main

def busy(*given):
    Path("decoding").touch()
    time.sleep(300)

features.prepare = busy
main()
"""


@pytest.fixture
def start(tmp_path):
    """Start a command in a session of its own, which is ended with the test."""
    variables = {"COOP_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = []

    def start(*words):
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=tmp_path, env=os.environ | variables, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        for _ in members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            break
        process.wait()


def members(session):
    """The processes of a session that still run."""
    running = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # ended meanwhile
            continue
        if int(its_session) == session and state != "Z":
            running.append(int(status.parent.name))
    return running


def wait_for(process, ready):
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ends_with_all_of_its_own(process, number):
    os.kill(process.pid, number)
    assert process.wait(30) == -number
    time.sleep(1)
    assert members(process.pid) == []
    err = process.stderr.read()
    assert b"Traceback" not in err and err.count(b"data: ") <= 1  # said by the command, not by each process again


@pytest.fixture
def many(tmp_path, mini):
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(25):
            write_picture(tmp_path / "photos" / name / f"{i}.png", colour, (12, 12), seed=100 * k + i)
    learned_prompt(mini).save(tmp_path / "run" / "prompt.safetensors")


MODEL = ["--model", "mini"]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["fit", "photos", "--shots", "all", "--views", "1", *MODEL], signal.SIGKILL),
        (["eval", "run", "photos"], signal.SIGTERM),
        (["ensemble", "photos", "--template", "a {}.", *MODEL], signal.SIGHUP),  # and zeroshot, which shares its code
        (["predict", "run", "photos"], signal.SIGHUP),
        (["transfer", "run", "photos", "--no-plot"], signal.SIGKILL),
        (["sweep", "photos", "--methods", "zeroshot", *MODEL], signal.SIGTERM),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value.name,
)
def test_decode_workers_end_with_the_command(start, many, tmp_path, command, number):
    process = start("-c", BUSY, *command)
    wait_for(process, (tmp_path / "decoding").exists)
    assert len(members(process.pid)) > 1
    ends_with_all_of_its_own(process, number)


def test_processes_of_a_sweep_end_with_it_and_so_do_their_decode_workers(start, many, tmp_path):
    """With online views each process of the sweep has decode workers of its own."""
    grid = ["--methods", "coop", "--shots", "22", "--seeds", "1", "--position", "end,front", "--views", "online"]
    process = start("-m", "coopcli", "sweep", "photos", *grid, "--jobs", "2", "--no-plot", "-o", "sweep", *MODEL)
    wait_for(process, lambda: len(list(tmp_path.glob("sweep/cells/*/checkpoint.safetensors"))) == 2)
    most = len(os.sched_getaffinity(0)) + 3  # the sweep, its two processes and their keeper
    wait_for(process, lambda: len(members(process.pid)) > most)
    ends_with_all_of_its_own(process, signal.SIGKILL)


def test_a_named_pipe_as_output_is_written_to_as_a_stream(start, many, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = start("-m", "coopcli", "eval", "run", "photos", "--predictions", "pipe", "-q")
    assert (tmp_path / "pipe").read_text().count("\n") == 76  # opening waits for the writer
    assert process.wait(60) == 0 and (tmp_path / "pipe").is_fifo()
