import subprocess
import sys

import pytest
import torch

from coopcli import machine as memory
from coopcli.machine import free_memory, network_file_system

CPU = torch.device("cpu")


def test_free_memory_is_that_of_the_system(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       24000000 kB\nMemFree:  1000 kB\nMemAvailable:   12345 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", told)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory(CPU) == 12345 * 1024


def test_a_system_without_meminfo_is_guessed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert free_memory(CPU) > 1 << 28


@pytest.mark.parametrize(("limit", "free"), [("max", 12345 * 1024), ("9000000", 9000000 - 5000000 + 1000000), ("3000000", 0)])
def test_a_container_may_leave_less(tmp_path, monkeypatch, limit, free):
    (tmp_path / "meminfo").write_text("MemAvailable:   12345 kB\n")
    for name, text in {"max": limit, "current": "5000000", "stat": "anon 4\ninactive_file 1000000"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory(CPU) == free


def test_a_network_file_system_is_known_by_the_longest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    here, odd = tmp_path / "home", tmp_path / "a b"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {here} nfs4 rw 0 0\n/dev/sdb1 {here}/local xfs rw 0 0\n"
        f"server:/y {str(odd).replace(' ', chr(92) + '040')} cifs rw 0 0\nbroken\n"
    )
    kinds = {here / "cache": "nfs4", here / "local" / "cache": None, odd / "x": "cifs", tmp_path: None}
    assert {path: network_file_system(path, mounts) for path in kinds} == kinds
    assert network_file_system(here, tmp_path / "nothing") is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step():
    """Tensors that come and go cost no new pages, which the kernel would have to clear."""
    code = """
import resource, sys, torch
from coopcli.machine import keep_freed_memory
if not keep_freed_memory():
    sys.exit("not glibc")
def touch():
    for _ in range(3):
        torch.empty(16 << 20).fill_(1)  # 64 MiB: 16,384 pages
for _ in range(6):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert int(done.stdout) < 1000
