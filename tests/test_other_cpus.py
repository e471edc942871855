"""The tests of equal bytes again, in processes where PyTorch's libraries compute as they do on other CPUs."""

import pytest
from other_cpus import failures


@pytest.mark.parametrize(
    "environment",
    [
        {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
    ],
    ids=lambda environment: " ".join(environment.values()),
)
def test_the_same_bytes_as_on_another_cpu(environment):
    assert failures(environment) == ""


def test_a_failure_is_seen():
    assert "nothing_of_this_name" in failures({}, "tests/nothing_of_this_name.py")
