"""Jobs of several processes, by torchrun: what they say, what they write, how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from class_features_job import features_in_parts
from conftest import COLOURS, write_picture
from jobs import TORCHRUN, ends_with_us, environment, torchrun

from coopcli import parallel
from coopcli.cli.setup import check_alike
from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError
from coopcli.parallel import World, world_of

FIT = ("--model", "mini", "--shots", 2, "--views", 2, "--class-chunk", 1, "--epochs")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("", World()),
        ("RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", World(1, 4, 1, 2)),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", World()),
        ("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_JOB_ID=7", World()),  # in a batch script
        ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=0", World()),
        (
            "SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x2)",
            World(3, 4, 1, 2),
        ),
        ("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=1", World()),
    ],
)
def test_the_job_is_read_from_torchruns_or_sruns_variables(variables, expected):
    assert world_of(dict(word.split("=") for word in variables.split())) == expected


@pytest.mark.parametrize("variables", ["RANK=2 WORLD_SIZE=2", "RANK=x WORLD_SIZE=2", "RANK=0 WORLD_SIZE=-3"])
def test_variables_that_contradict_each_other_are_refused(variables):
    given = dict(word.split("=") for word in variables.split())
    with pytest.raises(UsageError, match=variables.replace(" ", ", ")):
        world_of(given)
    command = [sys.executable, "-m", "coopcli", "list"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(**given))
    assert ended.returncode == 2 and ended.stderr.startswith("coop: ") and len(ended.stderr.splitlines()) == 1


def test_a_step_of_srun_meets_at_its_first_host():
    place = parallel._meeting_place({"SLURM_STEP_NODELIST": "gpu[07-09,12],cpu1", "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "2"})
    assert place == {"MASTER_ADDR": "gpu07", "MASTER_PORT": "20042"}
    with pytest.raises(UsageError, match="set MASTER_ADDR"):
        parallel._meeting_place({"SLURM_STEP_ID": "2"})


def test_shares_differ_by_one_at_most():
    for length in range(12):
        parts = [World(rank, 5).mine(range(length)) for rank in range(5)]
        assert [k for part in parts for k in part] == list(range(length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_that_see_different_data_are_refused(photos, monkeypatch):
    dataset = load_data(str(photos))
    monkeypatch.setattr("coopcli.cli.setup.world", lambda: World(0, 2))
    monkeypatch.setattr("coopcli.cli.setup.gather", lambda digest: [digest, digest])
    check_alike(dataset)
    monkeypatch.setattr("coopcli.cli.setup.gather", lambda digest: [digest, "another"])
    with pytest.raises(CoopError, match='see different images or classes in "photos"'):
        check_alike(dataset)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Photos, one of them damaged, and a prompt that one process learned from them."""
    folder = tmp_path_factory.mktemp("job")
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(6):
            write_picture(folder / "photos" / name / f"{i}.png", colour, seed=10 * k + i)
    (folder / "photos" / "red" / "3.png").write_bytes(b"no image")
    learn(folder, 3, folder / "alone")
    (folder / "split" / "test").mkdir(parents=True)
    for name in COLOURS:
        (folder / "split" / "test" / name).symlink_to(folder / "photos" / name)
    (folder / "split" / "test" / "red").unlink()
    write_picture(folder / "split" / "test" / "red" / "0.png", COLOURS["red"])
    return folder


def learn(work, epochs, folder):
    """Fit in a process of its own, alone."""
    words = ("fit", work / "photos", *FIT, epochs, "--on-error", "skip", "-o", folder)
    command = [sys.executable, "-m", "coopcli", *map(str, words)]
    subprocess.run(command, check=True, env=environment(COOP_CACHE=str(work / "cache")), capture_output=True)


def numbers(text):
    """A result in JSON without what differs from run to run."""
    content = json.loads(text)
    return {name: content[name] for name in content if name not in ("seconds", "peak_memory", "command_line", "prompt")}


def test_fit_writes_and_prints_what_one_process_does(work, tmp_path):
    job = torchrun(
        2, "fit", work / "photos", *FIT, 3, "--on-error", "skip", "-o", tmp_path / "run", "--json", COOP_CACHE=str(tmp_path)
    )
    assert job.returncode == 0, job.stderr
    assert json.loads(job.stdout)["skipped"] == 1
    assert job.stderr.count("skipped 1 of") == job.stderr.count("data: photos") == 1
    for name in ("prompt.safetensors", "log.jsonl", "fewshot.json"):
        assert (tmp_path / "run" / name).read_bytes() == (work / "alone" / name).read_bytes()
    for file in ("metrics.json",):
        assert numbers((tmp_path / "run" / file).read_text()) == numbers((work / "alone" / file).read_text())
    again = torchrun(2, "fit", work / "photos", *FIT, 3, "--on-error", "skip", "-o", tmp_path / "run", COOP_CACHE=str(tmp_path))
    assert again.returncode == 0 and "done already" in again.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "alone", "photos", "--json", "--predictions", "{}/predicted.csv"),
        ("zeroshot", "photos", "--model", "mini", "--json"),
        ("predict", "alone", "photos/red/0.png", "photos/red/3.png", "photos/blue/0.png", "--csv"),
        ("predict", "alone", "photos/red/0.png", "--json"),  # one process is without an image
        ("transfer", "alone", "split", "-o", "{}", "--json", "--no-plot"),
    ],
    ids=lambda words: words[0],
)
def test_commands_print_and_write_what_one_process_does(work, coop, tmp_path, monkeypatch, words):
    def run(runner, name):
        (tmp_path / name).mkdir()
        place = [str(work / word) if (work / word).exists() else word.format(tmp_path / name) for word in words]
        code, out, err = runner(name, *place)
        assert code == 0, err
        written = {path.name: path.read_text() for path in (tmp_path / name).glob("*.csv")}
        notes = [line for line in err.splitlines() if line.startswith(("note: ", "data: "))]
        return numbers(out) if words[0] not in ("predict", "transfer") else out if words[0] == "predict" else "", written, notes

    def in_two(name, *place):
        ended = torchrun(2, *place, COOP_CACHE=str(tmp_path / "two-cache"))
        return ended.returncode, ended.stdout, ended.stderr

    one = run(lambda name, *place: coop(*place), "one")
    assert run(in_two, "two") == one


def test_class_features_are_shared_out_and_have_the_bytes_of_one_process(tmp_path):
    """Parts of 3 classes by several processes, of hand-written prompts and of one context; and of 2 with one for each class."""
    expected, encoded = features_in_parts()
    assert encoded == 3 * [3, 3, 3, 2] + [2, 2, 2, 2, 2, 1]
    job = torchrun(3, Path(__file__).parent / "class_features_job.py", tmp_path / "features")
    assert job.returncode == 0, job.stderr
    parts = [torch.load(tmp_path / f"features-{rank}") for rank in range(3)]
    assert all(torch.equal(features, expected) for features, _ in parts)
    assert [len(encoded) for _, encoded in parts] == [10, 9, 7]  # the first prompts twice: two of the caches had them no more


def said(text):
    """The lines of coop, without torchrun's own report."""
    return [line for line in text.splitlines() if line.startswith("coop: ")]


def test_an_error_is_said_once(work, tmp_path):
    job = torchrun(2, "eval", work / "alone", tmp_path / "nowhere")
    assert job.returncode == 1 and job.stdout == ""
    assert len(said(job.stderr)) == 1 and "nowhere" in job.stderr
    assert "coopcli/" not in job.stderr  # no traceback of ours


def started(folder, *words, size=2, **more):
    command = [*TORCHRUN, str(size), *map(str, words)]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            command, env=environment(**more), stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
            preexec_fn=ends_with_us,
        )  # fmt: skip


def workers(process):
    """The process numbers of a torchrun's ranks, in order."""
    children = []
    for folder in os.listdir("/proc"):  # noqa: PTH208
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/stat") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{folder}/environ") as file:  # noqa: PTH123
                    rank = next((word[5:] for word in file.read().split("\0") if word.startswith("RANK=")), None)
            except OSError:
                continue
            if parent == process.pid and rank is not None:
                children.append((int(rank), int(folder)))
    return [number for _, number in sorted(children)]


def wait_for(ready, seconds=120):
    ends = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_job_with_one_line_and_a_restarted_one_gives_the_same_bytes(work, tmp_path, killed):
    """Restarted by torchrun where --max-restarts allows it; rank 1 is killed in a job of that kind, rank 0 in one without."""
    fit = ("fit", work / "photos", *FIT, 60, "--on-error", "skip", "-o", tmp_path / "run")
    again = ("--max-restarts", "1") if killed else ("--max-restarts", "0")
    process = started(tmp_path, *again, "-m", "coopcli", *fit, COOP_CACHE=str(work / "cache"))
    wait_for((tmp_path / "run" / "checkpoint.safetensors").exists)
    os.kill(workers(process)[killed], signal.SIGKILL)
    code = process.wait(120)
    text = (tmp_path / "said").read_text()
    assert "coopcli/" not in text
    if not killed:
        assert code == 1 and len(said(text)) <= 1, text
        assert all("another process of this job has ended" in line for line in said(text))
        process = started(tmp_path, "-m", "coopcli", *fit, COOP_CACHE=str(work / "cache"))
        assert process.wait(120) == 0
    else:
        assert code == 0, text
    assert "resuming after epoch" in (tmp_path / "said").read_text()
    learn(work, 60, tmp_path / "one")
    assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == (tmp_path / "one" / "prompt.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_process_that_hangs_is_told_after_the_timeout_and_ctrl_c_is_told_once(work, tmp_path):
    fit = ("fit", work / "photos", *FIT, 100000, "--on-error", "skip", "-o", tmp_path / "run")
    process = started(tmp_path, "-m", "coopcli", *fit, COOP_CACHE=str(work / "cache"), COOP_TIMEOUT="3")
    wait_for((tmp_path / "run" / "checkpoint.safetensors").exists)
    hung = workers(process)[1]
    os.kill(hung, signal.SIGSTOP)
    wait_for(lambda: said((tmp_path / "said").read_text()))
    os.kill(hung, signal.SIGCONT)
    assert process.wait(60) == 1
    assert ["has not answered for 3 seconds" in line for line in said((tmp_path / "said").read_text())] == [True]

    process = started(tmp_path, "-m", "coopcli", *fit, COOP_CACHE=str(work / "cache"))
    wait_for(lambda: "resuming after epoch" in (tmp_path / "said").read_text())
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    assert [line.startswith("coop: stopped; ") for line in said((tmp_path / "said").read_text())] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_torchrun_takes_its_processes_with_it(work, tmp_path):
    fit = ("fit", work / "photos", *FIT, 100000, "--on-error", "skip", "-o", tmp_path / "run")
    process = started(tmp_path, "-m", "coopcli", *fit, COOP_CACHE=str(work / "cache"))
    wait_for((tmp_path / "run" / "checkpoint.safetensors").exists)
    ranks = workers(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{number}/exe").exists() for number in ranks), seconds=30)
    assert len(ranks) == 2
