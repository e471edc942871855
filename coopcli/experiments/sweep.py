"""Run a grid of experiments on one data set; each is kept as soon as it is done, and a stopped grid is resumed."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from multiprocessing.synchronize import Event
from pathlib import Path
from time import sleep

import torch

from ..clip.cache import FeatureCache
from ..data.fewshot import test_items
from ..data.load import DataSet
from ..errors import CoopError
from ..learning.methods import COOP, METHODS
from ..parallel import launched
from .claims import claimed, holder
from .experiment import Laboratory, Origin
from .grid import Cell, OnStep, Plan, Result
from .sweep_folder import cell_folder, read_result, write_result

# Weights of a text tower whose training step gains little from a second thread: two fits at a time are faster.
SMALL_TOWER = 64 << 20  # bytes

POLL = 0.5  # seconds between two looks at what other processes do

Task = tuple[Cell, Origin, Result | None]  # a cell to do, what it is made of, and a result that needs a new test only
Shared = tuple[
    Callable[[], DataSet], Plan, Path, Sequence[Cell]
]  # how to load the data, the plan, the cache's folder, the grid

logger = logging.getLogger(__name__)


def sweep(
    dataset: DataSet,
    load: Callable[[], DataSet],
    plan: Plan,
    cells: Sequence[Cell],
    folder: Path,
    cache_folder: Path,
    jobs: int | None = None,
    on_images: OnStep = lambda step, done, total: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Do all cells and return their results in order; those that `folder` already holds are not done again.

    A result is kept for what it was made of: images with their contents, names, model, settings. With the same train and
    other test images, it is tested again; else it is done again, with a note.

    `jobs` processes each do one cell at a time (None: one for each core where the model is small, else one); each gets the
    data set from `load`, which pickle must be able to send. A result does not depend on their number.

    Other sweeps may work in the same folder: each cell is done by one of them, and all of them wait for the last. Of the
    processes of a torchrun or srun only the first waits and returns all results; the others return what is done by then.
    """
    laboratory = Laboratory(dataset, plan, FeatureCache(cache_folder), cells)
    if laboratory.cache.problem:
        logger.warning("%s", laboratory.cache.problem)
    if len(laboratory.test) < (n := len(test_items(dataset))):
        logger.warning(
            "all experiments are tested on the same %d of %d images: those that none of them trains on", len(laboratory.test), n
        )
    origins = {cell: laboratory.origin(cell) for cell in cells}
    earlier = {cell: result for cell in cells if (result := read_result(folder, cell))}
    kept = {cell: result for cell, result in earlier.items() if (result.learned_from, result.tested_on) == origins[cell]}
    same = {cell: result for cell, result in earlier.items() if result.learned_from == origins[cell][0]}
    again = '%s %d of %d experiments in "%s" again: %s'
    if n := len(earlier) - len(same):
        logger.warning(again, "doing", n, len(cells), folder, "their results are of other images or another model or version")
    if n := len(same) - len(kept):
        logger.warning(again, "testing", n, len(cells), folder, "their results are of other test images")
    for result in kept.values():
        on_result(result)
    todo = {cell: (cell, origins[cell], same.get(cell)) for cell in cells if cell not in kept}
    if todo:
        todo = {cell: todo[cell] for cell in sorted(todo, key=_length, reverse=True)}  # so that processes end together
        _prepare(laboratory, list(todo), folder, on_images)
        jobs = jobs or _fitting_jobs(laboratory, list(todo))
        shared = (load, plan, cache_folder, cells)
        with nullcontext() if jobs == 1 else _pool(shared, jobs) as pool:
            while todo:
                before = len(todo)
                free = [task for cell, task in todo.items() if not holder(cell_folder(folder, cell))]
                attempts = _at_once(pool, folder, free) if pool else (_attempt(laboratory, folder, *task) for task in free)
                others = (_finished(folder, *task) for task in [*todo.values()] if task not in free)
                for result in filter(None, chain(attempts, others)):
                    kept[result.cell] = result
                    del todo[result.cell]
                    on_result(result)
                if todo and len(todo) == before:
                    if launched().rank:  # the first process of the job waits, and does what a dead one has left
                        break
                    sleep(POLL)
    return [kept[cell] for cell in cells if cell in kept]


def _length(cell: Cell) -> tuple[bool, float]:
    """What tells how long a cell takes, compared with others: of all methods a fit takes longest, and by its images."""
    return cell.method == COOP, math.inf if cell.shots is None else cell.shots


def _prepare(laboratory: Laboratory, cells: Sequence[Cell], folder: Path, on_images: OnStep) -> None:
    """Encode the images, each process from another place and every second one backwards."""
    here = launched()
    with claimed(folder) as first:
        backwards = bool(here.rank % 2) if here.size > 1 else not first
        if here.size > 1:  # in pairs that go towards each other
            begin = (here.rank // 2 + backwards) / math.ceil(here.size / 2)
        else:
            begin = 0.0 if first else 1 - random.random() / 4
        laboratory.prepare(cells, on_images, begin, backwards)


def _attempt(laboratory: Laboratory, folder: Path, cell: Cell, origin: Origin, earlier: Result | None) -> Result | None:
    """Do a cell unless another process does it now, or has just done it."""
    with claimed(cell_folder(folder, cell)) as mine:
        if not mine:
            return None
        return _finished(folder, cell, origin, earlier) or _do(laboratory, folder, cell, origin, earlier)


def _finished(folder: Path, cell: Cell, origin: Origin, earlier: Result | None) -> Result | None:
    """The result of a cell that another process has done."""
    result = read_result(folder, cell)
    return result if result and (result.learned_from, result.tested_on) == origin else None


def _fitting_jobs(laboratory: Laboratory, cells: Sequence[Cell]) -> int:
    learned = [cell for cell in cells if not METHODS[cell.method].hand_written]
    encoders = [laboratory.backbone(model).text_encoder for model in {cell.model for cell in cells}]
    small = all(
        encoder.token_embedding.device.type == "cpu" and 48 * len(encoder.layers) * encoder.width**2 < SMALL_TOWER
        for encoder in encoders
    )
    return max(1, min((os.cpu_count() or 1) // launched().local_size, len(learned))) if small else 1


def _do(laboratory: Laboratory, folder: Path, cell: Cell, origin: Origin, earlier: Result | None) -> Result:
    """Do a cell, and write its result with the warnings that it gave."""
    with _collected_warnings() as warnings:
        result = laboratory.run(cell, cell_folder(folder, cell), origin, earlier)
    result = replace(result, note="; ".join(dict.fromkeys([*filter(None, [result.note]), *warnings])))
    write_result(folder, result)
    return result


# ------------------------------------------------------------------------------------------------ several processes

_laboratory: Laboratory  # of a worker process


@contextmanager
def _pool(shared: Shared, jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that do cells; None, with a warning, where they could not share semaphores.

    Raises CoopError when one is ended from outside.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half-way
    try:
        stop = spawn.Event()
        given = (shared, max(1, torch.get_num_threads() // jobs), stop)
        executor = ProcessPoolExecutor(jobs, spawn, initializer=_begin_worker, initargs=given)
    except (OSError, ImportError) as error:  # /dev/shm is missing or read-only
        logger.warning("no processes can be started here (%s); doing one experiment at a time", error)
        yield None
        return
    try:
        yield executor
    except BrokenProcessPool as error:
        raise CoopError("a worker process was ended from outside, perhaps because memory was full; try --jobs 1") from error
    except BaseException:
        stop.set()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _at_once(pool: ProcessPoolExecutor, folder: Path, tasks: Sequence[Task]) -> Iterator[Result | None]:
    """Yield results as they come, None for a cell that another process does."""
    for future in as_completed([pool.submit(_do_in_worker, folder, *task) for task in tasks]):
        yield future.result()


def _begin_worker(shared: Shared, threads: int, stop: Event) -> None:
    global _laboratory
    load, plan, cache_folder, cells = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    threading.Thread(target=_end_with_main, args=(stop,), daemon=True).start()
    torch.set_num_threads(threads)
    logging.getLogger("coopcli").addHandler(logging.NullHandler())  # the main process has shown the notes on the data already
    _laboratory = Laboratory(load(), plan, FeatureCache(cache_folder), cells)


def _end_with_main(stop: Event) -> None:
    main = multiprocessing.parent_process()
    while main and main.is_alive() and not stop.wait(0.5):
        pass
    os._exit(1)  # at once: what is half done is in checkpoints


def _do_in_worker(folder: Path, cell: Cell, origin: Origin, earlier: Result | None) -> Result | None:
    return _attempt(_laboratory, folder, cell, origin, earlier)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings that coop gives meanwhile, instead of showing them."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("coopcli")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Collect()], False
    try:
        yield messages
    finally:
        logger.handlers, logger.propagate = before
