"""Run the tests of equal bytes as on other CPUs: PyTorch's libraries are held to fewer instructions, on 1 and 2 threads.

    python tools/other_cpus.py

ATen, oneDNN and MKL each choose their kernels by the CPU they find; an environment variable each makes them choose as on an
older one. MKL's has no effect on AMD's CPUs. Each combination runs in a process of its own, about 15 seconds on two cores.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

ATEN = ({}, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ATEN_CPU_CAPABILITY": "default"})
PRODUCTS = ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"})
THREADS = ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"})


def failures(environment: Mapping[str, str], *arguments: str) -> str:
    """What pytest says of the tests of equal bytes in this environment; empty when all pass."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "same_bytes", "-p", "no:cacheprovider", *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return "" if run.returncode == 0 else run.stdout + run.stderr


def main() -> None:
    """Print a line for each combination; exit code 1 when a test fails in one."""
    failed = 0
    for aten, products, threads in product(ATEN, PRODUCTS, THREADS):
        environment = {**aten, **products, **threads}
        said = failures(environment)
        failed += bool(said)
        print(" ".join(f"{name}={value}" for name, value in environment.items()), "FAILED" if said else "ok", flush=True)
        if said:
            print(said)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
