import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import failed

from coopcli.errors import CoopError
from coopcli.experiments.folder_lock import LOCK_FILE, locked

HOLD = """
import sys, time
from pathlib import Path
from coopcli.experiments.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
FORK = HOLD.replace("import sys, time", "import os, sys, time").replace(
    '    print("held", flush=True)', '    child = os.fork() or time.sleep(60)\n    print("held", child, flush=True)'
)


def hold(folder, code=HOLD):
    """A process that holds the lock of a folder, once it does."""
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()


def test_a_folder_in_use_is_refused_with_process_and_host(tmp_path):
    process, _ = hold(tmp_path / "run")
    with pytest.raises(CoopError, match=f"in use by process {process.pid} on {socket.gethostname()}; wait"):
        locked(tmp_path / "run").__enter__()
    (tmp_path / "run" / LOCK_FILE).write_text("\x1b[31m")
    with pytest.raises(CoopError, match="in use by another process"):
        locked(tmp_path / "run").__enter__()
    process.communicate("\n")
    with locked(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / "run" / LOCK_FILE).read_text()
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "new" / "below"):
        assert (tmp_path / "new" / "below").is_dir()
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new" / "below"):
        (tmp_path / "new" / "below" / "file").write_text("")
    assert (tmp_path / "new" / "below" / "file").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_lock_ends_with_its_process(tmp_path, how):
    process, _ = hold(tmp_path)
    process.send_signal(how)
    process.wait()
    with locked(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_ends_though_a_child_lives_on(tmp_path):
    """Processes that decode images are forks of the one that holds the lock."""
    process, (_, child) = hold(tmp_path, FORK)
    process.kill()
    process.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoopError, match="cannot be written"):
        locked(tmp_path / "file" / "run").__enter__()


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_no_two_commands_in_one_folder(coop, photos, tmp_path, monkeypatch, command):
    monkeypatch.setattr("coopcli.cli.sweep.PATIENCE", 0.1)
    with locked(tmp_path / "run"):
        words = [command, photos, "--model", "mini", "--shots", "1", "-o", "run"]
        failed(coop(*words), 1, "is in use by process", socket.gethostname(), "--output")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
