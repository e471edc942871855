"""Completion as it is typed, in real shells: a command, an option, a choice, a file."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(_COOP_COMPLETE=source_bash coop)"; bind "set enable-bracketed-paste off"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u; eval "$(_COOP_COMPLETE=source_zsh coop)"'),
}
TYPED = [
    ("coop pre", "coop predict "),
    ("coop fit --context-l", "coop fit --context-length "),
    ("coop eval a_fi", "coop eval a_file"),
]


@pytest.fixture
def surroundings(tmp_path):
    """A folder with one file, and a `coop` that runs this code."""
    (tmp_path / "bin").mkdir()
    script = f"#!{sys.executable}\nimport sys\nfrom coopcli.__main__ import main\nsys.argv[0] = 'coop'\nsys.exit(main())\n"
    (tmp_path / "bin" / "coop").write_text(script)  # as pip writes it
    (tmp_path / "bin" / "coop").chmod(0o755)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a_file").touch()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    code = f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"
    return {
        "cwd": tmp_path / "here",
        "env": os.environ | {"PATH": path, "PYTHONPATH": code, "TERM": "dumb", "HOME": str(tmp_path)},
    }


class Shell:
    """An interactive shell in a terminal of its own."""

    def __init__(self, command, surroundings):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **surroundings
        )
        os.close(theirs)
        self.terminal, self.shown = ours, ""

    def type(self, keys):
        self.shown = ""
        os.write(self.terminal, keys.encode())

    def wait_for(self, words, seconds=90):
        """Read what it shows until the words are there; raises AssertionError with what was there instead."""
        end = time.time() + seconds
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x07\r]", "", self.shown):
            assert time.time() < end, repr(self.shown)
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.shown += os.read(self.terminal, 4096).decode(errors="replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.mark.parametrize("name", START)
def test_the_tab_key(name, surroundings):
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed here")
    command, setup = START[name]
    shell = Shell(command, surroundings)
    try:
        shell.type(f"{setup}; echo re''ady\n")
        shell.wait_for("ready")
        for typed, completed in TYPED:
            shell.type(f"{typed}\t")
            shell.wait_for(completed)
            shell.type("\x15")  # clear the line
    finally:
        shell.close()


def test_fish_is_asked_for_its_completions(surroundings):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed here")

    def offered(typed):
        script = f"env _COOP_COMPLETE=source_fish coop | source; complete --do-complete '{typed}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", script], capture_output=True, text=True, timeout=300, **surroundings
        )
        assert done.returncode == 0, done.stderr
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    assert offered("coop pre") == ["predict"]
    assert offered("coop fit --context-l") == ["--context-length"]
    assert "a_file" in offered("coop eval a_fi")
