import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from jobs import TORCHRUN, ends_with_us, environment

from coopcli.data.load import load_data
from coopcli.errors import CoopError
from coopcli.experiments import claims
from coopcli.experiments import sweep as sweeping
from coopcli.experiments.claims import claimed, holder
from coopcli.experiments.grid import Grid, Plan
from coopcli.experiments.sweep import sweep
from coopcli.experiments.sweep_folder import cell_folder, remove_sweep, write_result

TAKER = """
import sys, time
from pathlib import Path
from coopcli.experiments.claims import claimed
taken = []
for number in range(40):
    with claimed(Path(sys.argv[1]) / str(number)) as mine:
        done = Path(sys.argv[1]) / f"{number}.done"
        if mine and not done.exists():
            time.sleep(0.001)
            done.touch()
            taken.append(number)
print(*taken)
"""


def test_each_piece_is_done_by_one_of_several_processes(tmp_path):
    command = [sys.executable, "-c", TAKER, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(3)]
    taken = [int(number) for process in processes for number in process.communicate(timeout=60)[0].split()]
    assert sorted(taken) == list(range(40))


def old_claim(folder, seconds, **about):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / claims.CLAIM_FILE
    path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()} | about))
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_dead_process_of_this_host_loses_its_claim_and_a_living_one_keeps_it(tmp_path):
    with claimed(tmp_path) as mine, claimed(tmp_path) as again:
        assert mine and not again and holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert holder(tmp_path) is None and not list(tmp_path.glob("*.json"))
    old_claim(tmp_path / "living", 3600)
    old_claim(tmp_path / "new", 1, process=dead_process())  # another container may have the same name, and beats
    for name in ("living", "new"):
        with claimed(tmp_path / name) as mine:
            assert not mine
    old_claim(tmp_path / "dead", 3600, process=dead_process())
    with claimed(tmp_path / "dead") as mine:
        assert mine


def test_a_claim_of_another_host_ages_by_its_standstill_whatever_the_clocks_say(tmp_path, monkeypatch):
    path, now = old_claim(tmp_path, 9e6, host="elsewhere"), time.monotonic()
    assert holder(tmp_path) == f"process {os.getpid()} on elsewhere"
    monkeypatch.setattr(claims.time, "monotonic", lambda: now + claims.DEAD)
    assert holder(tmp_path)
    os.utime(path)  # a sign of life
    monkeypatch.setattr(claims.time, "monotonic", lambda: now + 2 * claims.DEAD)
    assert holder(tmp_path)
    monkeypatch.setattr(claims.time, "monotonic", lambda: now + 3 * claims.DEAD + 1)
    assert holder(tmp_path) is None
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"process": "x", "host": 3}', b"\xff"])
def test_a_claim_that_says_nothing_holds_until_it_stands_still(tmp_path, content, monkeypatch):
    old_claim(tmp_path, 5).write_bytes(content)
    assert holder(tmp_path)
    now = time.monotonic()
    monkeypatch.setattr(claims.time, "monotonic", lambda: now + claims.DEAD + 1)
    assert holder(tmp_path) is None


def test_a_claim_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.02)
    with claimed(tmp_path):
        path = tmp_path / claims.CLAIM_FILE
        os.utime(path, (0, 0))
        ends = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < ends:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_a_sweep_waits_for_what_others_do_and_overwrite_is_refused_meanwhile(photos, tmp_path, monkeypatch):
    cells, load = Grid(("zeroshot", "ensemble"), ("mini",), (1,), (1,)).cells(), partial(load_data, str(photos))
    plan = Plan("a photo of a {}.", ("a photo of a {}.",), device="cpu", views=1)
    alone = sweep(load(), load, plan, cells, tmp_path / "alone", tmp_path / "features", 1)
    folder, waited = tmp_path / "shared", []
    other = old_claim(cell_folder(folder, cells[0]), 0, host="elsewhere")
    with pytest.raises(CoopError, match="in use by process"):
        remove_sweep(folder)

    def others(seconds):
        waited.append(seconds)
        write_result(folder, alone[0])
        other.unlink(missing_ok=True)

    monkeypatch.setattr(sweeping, "sleep", others)
    together = sweep(load(), load, plan, cells, folder, tmp_path / "features", 1)
    assert [result.cell for result in together] == cells and waited == [sweeping.POLL]
    assert together[0] == alone[0] and together[1].top1 == alone[1].top1


def test_torchrun_and_two_shells_give_the_results_of_one(split_photos, tmp_path):
    words = ["sweep", str(split_photos), "--model", "mini", "--methods", "zeroshot,coop", "--shots", "1,2", "--seeds", "1"]
    words += ["--recipe", "fast", "--views", "1", "--no-plot", "--jobs", "1"]
    alone = [sys.executable, "-m", "coopcli"]
    commands = {"one": [alone], "shells": [alone, alone], "torchrun": [[*TORCHRUN, "2", "-m", "coopcli"]]}
    tables = {}
    for name, starts in commands.items():
        variables = environment(COOP_CACHE=str(tmp_path / name / "cache"))
        shells = [
            subprocess.Popen(
                [*start, *words, "-o", str(tmp_path / name)],
                env=variables,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=ends_with_us,
            )
            for start in starts
        ]
        for shell in shells:
            out = shell.communicate(timeout=300)[0]
            assert shell.returncode == 0 and out.count("top-1") == 1
        results = json.loads((tmp_path / name / "results.json").read_text())["results"]
        tables[name] = [{key: row[key] for key in row if key not in ("seconds", "peak_memory")} for row in results]
        prompts = sorted((tmp_path / name / "cells").glob("*/prompt.safetensors"))
        tables[name].append([path.read_bytes() for path in prompts])
        assert not list((tmp_path / name).rglob(claims.CLAIM_FILE)) and len(prompts) == 2
    assert tables["one"] == tables["shells"] == tables["torchrun"]
    assert Path(tmp_path / "one" / "results.csv").exists()
