"""Many processes as one job, as `torchrun` starts them: on this machine, by gloo on the loopback interface."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def ends_with_us():
    """What a process does before it becomes another (preexec_fn): where the tests are killed, the kernel ends it too."""
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(**more):
    """A single thread each, so that all processes sum in the same order."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])} | more


def torchrun(size, *words, **more):
    """Run `coop` (words), or with a first word that ends in .py a script, in `size` processes."""
    module = words if str(words[0]).endswith(".py") else ("-m", "coopcli", *words)
    command = [*TORCHRUN, str(size), *map(str, module)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(**more), preexec_fn=ends_with_us
    )
