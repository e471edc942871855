"""Run a grid of experiments on one data set; each is kept as soon as it is done, and a stopped grid is resumed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from ..clip.cache import FeatureCache
from ..data.load import DataSet
from ..errors import CoopError
from ..learning.methods import METHODS
from .experiment import Laboratory
from .grid import Cell, OnStep, Plan, Result
from .sweep_folder import cell_folder, read_result, write_result

# Weights of a text tower whose training step gains little from a second thread: two fits at a time are faster.
SMALL_TOWER = 64 << 20  # bytes


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

    `jobs` processes each do one cell at a time (None: one for each core where the model is small, else one); each gets the
    data set from `load`, which pickle must be able to send. A result does not depend on their number.
    """
    kept = {cell: result for cell in cells if (result := read_result(folder, cell))}
    for result in kept.values():
        on_result(result)
    left = [cell for cell in cells if cell not in kept]
    if left:
        laboratory = Laboratory(dataset, plan, FeatureCache(cache_folder))
        laboratory.prepare(left, on_images)
        jobs = jobs or _fitting_jobs(laboratory, left)
        done = _in_turn(laboratory, left, folder) if jobs == 1 else _at_once(load, plan, left, folder, cache_folder, jobs)
        for result in done:
            kept[result.cell] = result
            on_result(result)
    return [kept[cell] for cell in cells]


def _fitting_jobs(laboratory: Laboratory, cells: Sequence[Cell]) -> int:
    learned = [cell for cell in cells if not METHODS[cell.method].hand_written]
    encoders = [laboratory.backbone(model).text_encoder for model in {cell.model for cell in cells}]
    small = all(
        encoder.token_embedding.device.type == "cpu" and 48 * len(encoder.layers) * encoder.width**2 < SMALL_TOWER
        for encoder in encoders
    )
    return max(1, min(os.cpu_count() or 1, len(learned))) if small else 1


def _in_turn(laboratory: Laboratory, cells: Sequence[Cell], folder: Path) -> Iterator[Result]:
    for cell in cells:
        yield _do(laboratory, cell, folder)


def _do(laboratory: Laboratory, cell: Cell, folder: Path) -> Result:
    """Do a cell, and write its result with the warnings that it gave."""
    with _collected_warnings() as warnings:
        result = laboratory.run(cell, cell_folder(folder, cell))
    result = replace(result, note="; ".join(dict.fromkeys([*filter(None, [result.note]), *warnings])))
    write_result(folder, result)
    return result


# ------------------------------------------------------------------------------------------------ several processes

_laboratory: Laboratory  # of a worker process


def _at_once(
    load: Callable[[], DataSet], plan: Plan, cells: Sequence[Cell], folder: Path, cache_folder: Path, jobs: int
) -> Iterator[Result]:
    """Yield results as they come. Raises CoopError when a process is ended from outside."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half-way
    stop = spawn.Event()
    given = (load, plan, cache_folder, max(1, torch.get_num_threads() // jobs), stop)
    executor = ProcessPoolExecutor(jobs, spawn, initializer=_begin_worker, initargs=given)
    try:
        for future in as_completed([executor.submit(_do_in_worker, cell, folder) for cell in cells]):
            yield future.result()
    except BrokenProcessPool as error:
        raise CoopError("a worker process was ended from outside, perhaps because memory was full; try --jobs 1") from error
    except BaseException:
        stop.set()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(load: Callable[[], DataSet], plan: Plan, cache_folder: Path, threads: int, stop: Event) -> None:
    global _laboratory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    threading.Thread(target=_end_with_main, args=(stop,), daemon=True).start()
    torch.set_num_threads(threads)
    logging.getLogger("coopcli").addHandler(logging.NullHandler())  # the main process has shown the notes on the data already
    _laboratory = Laboratory(load(), plan, FeatureCache(cache_folder))


def _end_with_main(stop: Event) -> None:
    main = multiprocessing.parent_process()
    while main and main.is_alive() and not stop.wait(0.5):
        pass
    os._exit(1)  # at once: what is half done is in checkpoints


def _do_in_worker(cell: Cell, folder: Path) -> Result:
    return _do(_laboratory, cell, folder)


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
