"""The tests of equal bytes again, in processes where PyTorch's libraries compute as they do on other CPUs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from other_cpus import failures

CPUS = (
    {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
)


@pytest.fixture(scope="module")
def runs():
    """What is said in each environment; the processes run side by side."""
    with ThreadPoolExecutor(len(CPUS)) as threads:
        yield [threads.submit(failures, cpu) for cpu in CPUS]


@pytest.mark.parametrize("number", range(len(CPUS)), ids=[" ".join(cpu.values()) for cpu in CPUS])
def test_the_same_bytes_as_on_another_cpu(runs, number):
    assert runs[number].result() == ""


def test_a_failure_is_seen():
    assert "nothing_of_this_name" in failures({}, "tests/nothing_of_this_name.py")
