"""Many processes as one job, as `torchrun` starts them: on this machine, by gloo on the loopback interface."""

import os
import subprocess
import sys
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment(**more):
    """A single thread each, so that all processes sum in the same order."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])} | more


def torchrun(size, *words, **more):
    """Run `coop` (words), or with a first word that ends in .py a script, in `size` processes."""
    module = words if str(words[0]).endswith(".py") else ("-m", "coopcli", *words)
    command = [*TORCHRUN, str(size), *map(str, module)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**more))
