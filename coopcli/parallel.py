"""Many processes as one job: which of them this is, and the few things that they do together, by torch.distributed.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; Slurm's `srun` has variables of its own. Without any there is one process,
and everything here returns at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import CoopError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

T = TypeVar("T")
PATIENCE = 1800  # seconds that one process waits for another; COOP_TIMEOUT sets another number
SPECIAL_STEPS = 0xFFFFFFF0  # Slurm's numbers of steps that no srun began (a batch script, an interactive shell) begin here


@dataclass(frozen=True)
class World:
    """The processes of a job: this one's number `rank` among `size`, and `local_rank` among the `local_size` of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def part(self, length: int) -> slice:
        """This process's share of `length` things in a row; shares differ by one at most, and may be empty."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of some items, in their order."""
        return items[self.part(len(items))]


def world_of(environment: Mapping[str, str]) -> World:
    """Read the variables of torchrun, or of a step of srun. Raises UsageError for variables that contradict each other."""
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        numbers = [environment.get(name, default) for name, default in zip(names, ("", "", "0", "1"), strict=True)]
    elif int(_digits(environment.get("SLURM_STEP_ID")) or SPECIAL_STEPS) < SPECIAL_STEPS:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        numbers = [environment.get(name, "").partition("(")[0].partition(",")[0] for name in names]
    else:
        return World()
    if not all(map(_digits, numbers)) or not int(numbers[0]) < int(numbers[1]):
        given = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise UsageError(f"the variables of torchrun or srun contradict each other: {given}")
    rank, size, local_rank, local_size = map(int, numbers)
    return World(rank, size, local_rank, max(1, local_size)) if size > 1 else World()


def _digits(text: str | None) -> str:
    return text if text is not None and re.fullmatch("[0-9]{1,12}", text) else ""


@cache
def launched() -> World:
    """The job that this process was started in, whether or not the command works together with the others."""
    return world_of(os.environ)


class _Job:
    """What `join` made: the processes that work together, and the store in which they leave word."""

    world = World()
    store: Any = None


def world() -> World:
    """The processes that work together on this command: after `join` all of the job, else this one alone."""
    return _Job.world


def join(device: str = "auto", together: bool = True) -> None:
    """Meet the other processes of the job; from then on `world` is all of them, or with `together` False still this one alone.

    On GPUs they talk by NCCL, else by gloo. Raises CoopError when they do not meet.
    """
    here = launched()
    if here.size == 1 or _Job.store is not None:
        return
    import torch
    import torch.distributed as dist
    import torch.distributed.distributed_c10d as c10d
    from torch.distributed.rendezvous import rendezvous

    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    if "MASTER_ADDR" not in os.environ:
        os.environ.update(_meeting_place(os.environ))
    with _one_line_errors():
        store, _, _ = next(rendezvous("env://", here.rank, here.size, timeout=timedelta(seconds=_patience())))
        # torchrun's store outlives a restart, and with it what the processes before have left there.
        attempt = f"coop {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {here.size}"
        _Job.store = c10d.PrefixStore(attempt, store)
        if together:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                timeout=timedelta(seconds=_patience()), store=_Job.store,
                rank=here.rank, world_size=here.size,
            )  # fmt: skip
            _Job.world = here


def _meeting_place(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the processes of a step of srun meet: the step's first host, at a port of the job's own."""
    first = re.match(r"(?P<name>[^\[,]+)(\[(?P<number>[0-9]+))?", environment.get("SLURM_STEP_NODELIST", ""))
    if not first:
        raise UsageError("where the processes meet is not known; set MASTER_ADDR and MASTER_PORT, or start them by torchrun")
    number = int(_digits(environment.get("SLURM_JOB_ID")) or 0) * 8 + int(environment["SLURM_STEP_ID"])
    return {"MASTER_ADDR": first["name"] + (first["number"] or ""), "MASTER_PORT": str(20000 + number % 40000)}


def leave() -> None:
    """Part from the others at the end of the work."""
    if _Job.world.size > 1:
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.destroy_process_group()
        _Job.world = World()


def first_goes_on() -> bool:
    """End the common work; returns whether this is the process that writes what came of it, and from now on works alone."""
    _Job.world = World()
    return launched().rank == 0


def first_to_fail() -> bool:
    """Whether this process is to say why the job ends: the first of all that asks, so that the others' ends stay silent."""
    here = launched()
    if _Job.store is None:  # nothing was done together: all fail alike
        return here.rank == 0
    try:
        return bool(_Job.store.add("failed", 1) == 1)
    except RuntimeError:  # the store ended with the process that held it, the first
        return here.rank <= 1


def _patience() -> int:
    return int(_digits(os.environ.get("COOP_TIMEOUT")) or PATIENCE)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the errors of torch.distributed into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if re.search("time[d ]*out", str(error), re.IGNORECASE):
            raise CoopError(
                f"another process of this job has not answered for {_patience()} seconds (COOP_TIMEOUT); it hangs or is slow"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CoopError(f"another process of this job has ended, or cannot be reached ({reason[:200]})") from error


def after_first(action: Callable[[], T]) -> T:
    """Do something after the first process of the job has done it: where each works apart, too."""
    here = launched()
    if _Job.store is not None and here.rank:
        with _one_line_errors():
            _Job.store.wait(["begun"], timedelta(seconds=_patience()))
    result = action()
    if _Job.store is not None and not here.rank:
        with _one_line_errors():
            _Job.store.set("begun", "")
    return result


def share(value: T) -> T:
    """Give every process the value of the first one."""
    if _Job.world.size == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with _one_line_errors():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Give every process the values of all, by rank."""
    if _Job.world.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _Job.world.size
    with _one_line_errors():
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Give every process the rows of all, [sum of counts, ...] by rank; process r has `counts[r]` of them.

    Each part goes into its place of the result: no second copy of the whole is made.
    """
    if _Job.world.size == 1:
        return rows
    import torch.distributed as dist

    whole = rows.new_empty(sum(counts), *rows.shape[1:])
    with _one_line_errors():
        for rank, part in enumerate(whole.split(list(counts))):
            if rank == _Job.world.rank:
                part.copy_(rows)
            if len(part):
                dist.broadcast(part, src=rank)
    return whole


def gather_small(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """As `gather_rows`, in one exchange: for a few rows at every step of training."""
    if _Job.world.size == 1:
        return rows
    import torch
    import torch.distributed as dist

    filled = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(filled) for _ in counts]
    with _one_line_errors():
        dist.all_gather(parts, filled)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
