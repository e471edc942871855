"""Where images are decoded: in threads, or in processes that end with this one and whose C libraries cannot be heard."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from ..errors import CoopError
from ..machine import end_with_parent
from .pixels import is_talkative

Submit = Callable[..., Future[Any]]  # (an image's bytes, a function, its arguments)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def decoders(many: bool) -> Iterator[Submit]:
    """Give a function like `Executor.submit` that takes an image's bytes first, and runs the call elsewhere.

    In threads, since Pillow mostly releases the GIL. In processes on Linux, where they start quickly, for `many` images and
    for each that a C library decodes which may write to stderr. Raises CoopError when a process is killed.
    """
    threads, lock = ThreadPoolExecutor(cores()), threading.Lock()
    processes: list[ProcessPoolExecutor | None] = []  # one, from the first image that wants it; None where there cannot be any

    def submit(content: bytes, function: Callable[..., Any], *given: Any) -> Future[Any]:
        if many or is_talkative(content):
            with lock:
                if not processes:
                    processes.append(_start_processes())
                if executor := processes[0]:
                    return executor.submit(function, *given)
        return threads.submit(function, *given)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise CoopError("a worker process that decodes images was killed; the memory may be full") from error
    finally:
        for executor in filter(None, (*processes, threads)):
            executor.shutdown(cancel_futures=True)


def _start_processes() -> ProcessPoolExecutor | None:
    in_pool = multiprocessing.current_process().daemon  # a multiprocessing.Pool allows its workers no processes
    if sys.platform != "linux" or in_pool:
        return None
    given = (os.getpid(), threading.current_thread() is threading.main_thread())
    try:
        return ProcessPoolExecutor(cores(), multiprocessing.get_context("fork"), initializer=_begin_worker, initargs=given)
    except (OSError, ImportError):  # no semaphores: /dev/shm is missing or read-only
        return None


def _begin_worker(parent: int, by_main_thread: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the main process, which ends this one
    end_with_parent(parent, by_main_thread)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # where libtiff and others write; an unreadable image is an error of ours
    os.close(nowhere)
