"""What the rows share: the device, sizes for a rehearsal, and clocks that wait for the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch


class NotHere(Exception):
    """A row cannot run on this device; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: torch.device
    quick: bool
    memory_fraction: float

    def need_cuda(self, why: str) -> None:
        """Raises NotHere, with the reason, without a GPU."""
        if self.device.type != "cuda":
            raise NotHere(f"needs CUDA: {why}")

    def wait(self) -> None:
        """Until the GPU has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int = 5) -> float:
        """Median time of a round, after one untimed."""
        run()
        times = []
        for _ in range(rounds):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a product large enough for full speed."""
        n = 8192 if self.device.type == "cuda" else 1024
        x, y = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: x @ y)


@dataclass(frozen=True)
class Line:
    """One result: in words, and its numbers for the JSON file."""

    what: str
    text: str
    numbers: dict[str, float | str | None] = field(default_factory=dict)


Rows = Callable[[Setting], Iterable[Line]]
