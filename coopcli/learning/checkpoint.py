"""The checkpoint of a training run, written after every epoch: what the next epoch starts from."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import CoopError
from ..files import write_atomically
from ..learned.safefile import ENTRY, MAX_FILE, parse
from .training import EpochLog, TrainingState

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer."  # begins the names of the optimizer's tensors


def save_checkpoint(path: Path, state: TrainingState, task: str) -> None:
    """Write the state of training; `task` identifies in full what is trained. Raises CoopError when it cannot be written."""
    tensors = {"context": state.context, **{f"{OPTIMIZER}{name}": value for name, value in state.optimizer.items()}}
    header = {"task": task, "sha256": _digest(tensors), "log": [vars(epoch) for epoch in state.log]}
    write_atomically(path, save(tensors, metadata={ENTRY: json.dumps(header)}))


def load_checkpoint(path: Path, task: str, start: TrainingState, epochs: int) -> TrainingState | None:
    """Read the state that training of this task reached, from `start` and in at most so many epochs.

    None without a checkpoint, and, with a warning, for one that is damaged or belongs to another task. Nothing in the file
    is believed before it is checked.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            contents = parse(file, path, 3 * MAX_FILE)  # the context and two moments of it
        header = contents.entry
        if header["task"] != task:
            logger.warning('"%s" belongs to other images, settings or another coop; training starts from the beginning', path)
            return None
        in_order = sorted(contents.table.items(), key=lambda item: item[1]["data_offsets"])
        tensors = contents.tensors({name: ("F32", table["shape"]) for name, table in in_order})
        if header["sha256"] != _digest(tensors):
            raise ValueError("the numbers are not those that were written")
        context = _like(tensors.pop("context"), start.context)
        optimizer = {name.removeprefix(OPTIMIZER): _optimizer_tensor(value, context) for name, value in tensors.items()}
        return TrainingState(context, optimizer, _log(header["log"], epochs))
    except (OSError, CoopError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError):
        logger.warning('"%s" is damaged; training starts from the beginning', path)
        return None


def _like(value: Tensor, other: Tensor) -> Tensor:
    if value.shape != other.shape or value.dtype != torch.float32 or not value.isfinite().all():
        raise ValueError("not such a tensor of finite numbers")
    return value


def _optimizer_tensor(value: Tensor, context: Tensor) -> Tensor:
    """A moment of the context, or a count of steps. Raises ValueError for anything else."""
    return _like(value, context if value.ndim else torch.zeros(()))


def _log(entries: Sequence[dict[str, float]], epochs: int) -> tuple[EpochLog, ...]:
    """The log of epochs 0, 1, 2, ... Raises ValueError or TypeError for anything else."""
    log = tuple(EpochLog(**entry) for entry in entries)  # type: ignore[arg-type]
    for number, epoch in enumerate(log):
        numbers = (epoch.lr, epoch.loss, epoch.accuracy)
        if (epoch.epoch, epoch.epochs) != (number, epochs) or not all(type(n) is float and math.isfinite(n) for n in numbers):
            raise ValueError("not the log of these epochs")
    if not 1 <= len(log) <= epochs:
        raise ValueError("not so many epochs")
    return log


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.flatten().numpy().data)
    return digest.hexdigest()
