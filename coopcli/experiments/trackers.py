"""Send the curves of a fit to TensorBoard, Weights & Biases or trackio, epoch by epoch. log.jsonl needs none of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CoopError, UsageError
from ..files import write_atomically

if TYPE_CHECKING:
    from ..learning.fit import Fit
    from ..learning.training import EpochLog

Record = Callable[[Mapping[str, float], int], None]  # numbers by name, and their step


def epoch_numbers(log: EpochLog) -> dict[str, float]:
    """The numbers of an epoch; their step is the epoch's."""
    return {"train/loss": log.loss, "train/accuracy": log.accuracy, "train/lr": log.lr}


def final_numbers(result: Fit) -> dict[str, float]:
    """The numbers at the end: accuracies on the test images, shares in [0, 1]."""
    evaluations = {"test": result.test, "hand_written": result.hand_written}
    return {
        f"{name}/{kind}": getattr(evaluation.metrics, kind)
        for name, evaluation in evaluations.items()
        if evaluation
        for kind in ("top1", "macro")
    }


@contextmanager
def tracked(folder: Path, settings: Mapping[str, Any], tensorboard: bool, wandb: str | None) -> Iterator[Record]:
    """Open trackers for the run in `folder`; the function given back sends the numbers of a step to each.

    A first step above 0 continues the run of an earlier process. Nothing is written before the first number.
    Raises UsageError when the library that a tracker needs is not installed.
    """
    with ExitStack() as stack:
        records: list[Record] = []
        if tensorboard:
            records.append(stack.enter_context(_tensorboard(folder / "tensorboard")))
        if wandb is not None:
            records.append(stack.enter_context(_wandb(wandb, folder, settings)))

        def record(numbers: Mapping[str, float], step: int) -> None:
            for each in records:
                each(numbers, step)

        yield record


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Record]:
    """Event files, for `tensorboard --logdir coop-runs`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'coopcli[tensorboard]'") from error
    writer = None

    def record(numbers: Mapping[str, float], step: int) -> None:
        nonlocal writer
        try:
            if writer is None:  # drops what an earlier process wrote of this step and later ones
                writer = SummaryWriter(str(folder), purge_step=step)
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)
            writer.flush()
        except OSError as error:
            raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error

    try:
        yield record
    finally:
        if writer:
            writer.close()


@contextmanager
def _wandb(project: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Record]:
    """A run of wandb, or of trackio where that is installed instead; both take their own logins and variables."""
    library = _installed("wandb") or _installed("trackio")
    if library is None:
        raise UsageError("--wandb needs the package wandb or trackio: pip install 'coopcli[wandb]'")
    start = _start_wandb if library.__name__ == "wandb" else _start_trackio
    with _talking():
        if library.__name__ == "wandb":
            library.login()  # or it would ask at the first epoch
    run = None

    def record(numbers: Mapping[str, float], step: int) -> None:
        nonlocal run
        with _talking():
            run = run or start(library, project, folder, dict(settings), step > 0)
            run.log(dict(numbers), step=step)

    try:
        yield record
    finally:
        with _talking():
            if run:
                library.finish()


def _installed(name: str) -> Any:
    """An optional library, or None."""
    try:
        return import_module(name)
    except ImportError:
        return None


@contextmanager
def _talking() -> Iterator[None]:
    """Send what a tracker prints to stderr, and turn whatever it raises into one line."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        raise CoopError(f"--wandb: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _start_wandb(wandb: Any, project: str, folder: Path, settings: dict[str, Any], resumed: bool) -> Any:
    """Start a run, or resume the one that an earlier process began in this folder."""
    known = folder / "wandb" / "id"
    run = wandb.init(
        project=project,
        name=folder.name,
        id=known.read_text("utf-8") if resumed and known.exists() else None,
        resume="allow",
        dir=folder,
        config=settings,
        settings=wandb.Settings(console="off"),
    )
    write_atomically(known, run.id.encode())
    return run


def _start_trackio(trackio: Any, project: str, folder: Path, settings: dict[str, Any], resumed: bool) -> Any:
    """Start a run, or resume the last one of this folder's name."""
    return trackio.init(project, folder.name, config=settings, resume="allow" if resumed else "never")
