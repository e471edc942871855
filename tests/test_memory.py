import torch

from coopcli import memory
from coopcli.memory import free_memory

CPU = torch.device("cpu")


def test_free_memory_is_that_of_the_system(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       24000000 kB\nMemFree:  1000 kB\nMemAvailable:   12345 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", told)
    assert free_memory(CPU) == 12345 * 1024


def test_a_system_without_meminfo_is_guessed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert free_memory(CPU) > 1 << 28
