"""A grid of experiments on one data set: each cell is kept as soon as it is done, and a stopped grid goes on."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from ..clip.cache import FeatureCache
from ..data.load import DataSet
from ..errors import CoopError
from ..files import CELLS_FOLDER, RESULT_FILE, write_json
from ..learning.methods import COOP, METHODS
from .experiment import Laboratory
from .grid import Cell, Plan, Result, Variant

# Weights of a text tower whose training step gains little from a second thread: two fits at a time are faster.
SMALL_TOWER = 64 << 20  # bytes


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a cell; variants count for the method `coop` only."""

    methods: Sequence[str]
    models: Sequence[str]
    shots: Sequence[int | None]
    seeds: Sequence[int]
    variants: Sequence[Variant] = (Variant(),)

    def cells(self) -> list[Cell]:
        """The cells, in the order in which they are done."""
        found = []
        for model, method in product(self.models, self.methods):
            if METHODS[method].hand_written:
                found.append(Cell(method, model))
            else:
                variants = self.variants if method == COOP else (None,)
                found += [Cell(method, model, *key) for key in product(self.shots, self.seeds, variants)]
        return found


def sweep(
    dataset: DataSet,
    load: Callable[[], DataSet],
    plan: Plan,
    cells: Sequence[Cell],
    folder: Path,
    cache_folder: Path,
    jobs: int | None = None,
    on_images: Callable[[str, int, int], None] = lambda step, done, total: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """The results of all cells, in their order; those that `folder` holds already are not done again.

    `jobs` processes do a cell each at a time (None: one for each core where the model is small, else one); each has the
    data set from `load`, which must be something that pickle knows. Each result is that of one process.
    """
    kept = {cell: result for cell in cells if (result := _kept(folder, cell))}
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
    """Do a cell, keep its result on disk, and with it the warnings that it gave."""
    own = _of_cell(folder, cell)
    with _collected_warnings() as warnings:
        result = laboratory.run(cell, own)
    result = replace(result, note="; ".join(dict.fromkeys([*filter(None, [result.note]), *warnings])))
    write_json(own / RESULT_FILE, asdict(result))
    return result


def _of_cell(folder: Path, cell: Cell) -> Path:
    return folder / CELLS_FOLDER / cell.folder


def _kept(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell that is done."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        row = json.loads((_of_cell(folder, cell) / RESULT_FILE).read_text("utf-8"))
        if row.pop("cell") == json.loads(json.dumps(asdict(cell))) and row["top1"] is not None:
            return Result(cell, **row)
    return None


# ------------------------------------------------------------------------------------------------ several processes

_laboratory: Laboratory  # of a worker process


def _at_once(
    load: Callable[[], DataSet], plan: Plan, cells: Sequence[Cell], folder: Path, cache_folder: Path, jobs: int
) -> Iterator[Result]:
    """Results as they come. Raises CoopError when a process is ended from outside."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half-way
    stop = spawn.Event()
    given = (load, plan, cache_folder, max(1, torch.get_num_threads() // jobs), stop)
    executor = ProcessPoolExecutor(jobs, spawn, initializer=_begin_worker, initargs=given)
    try:
        for future in as_completed([executor.submit(_do_in_worker, cell, folder) for cell in cells]):
            yield future.result()
    except BrokenProcessPool as error:
        raise CoopError("a process that learns was ended from outside; was the memory full? try --jobs 1") from error
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
    logging.getLogger("coopcli").addHandler(logging.NullHandler())  # the main process has told of the data already
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
    """The warnings that coop gives meanwhile, instead of their being shown."""
    told: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger = logging.getLogger("coopcli")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Collect()], False
    try:
        yield told
    finally:
        logger.handlers, logger.propagate = before
