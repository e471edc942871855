"""Training half-way, on disk: what the next epoch needs, written after every epoch."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from ..learned.safefile import ENTRY
from .training import EpochLog, TrainingState

logger = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: TrainingState, task: str) -> None:
    """Write where training stands; `task` names what is being trained, in full. Raises CoopError when it cannot be written."""
    tensors = {"context": state.context, **{f"optimizer.{name}": value for name, value in state.optimizer.items()}}
    header = {
        "task": task,
        "sha256": _digest(tensors),
        "class_chunk": state.class_chunk,
        "log": [asdict(epoch) for epoch in state.log],
    }
    write_atomically(path, save(tensors, metadata={ENTRY: json.dumps(header)}))


def load_checkpoint(path: Path, task: str) -> TrainingState | None:
    """Where training of this task stood; None when there is no checkpoint, or only one that is damaged or of another task."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[ENTRY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["sha256"] != _digest(tensors):
            raise ValueError("its numbers are not those that were written")
        context = tensors.pop("context")
        log = tuple(EpochLog(**epoch) for epoch in header["log"])
        optimizer = {name.removeprefix("optimizer."): value for name, value in tensors.items()}
        state = TrainingState(context, optimizer, log, header["class_chunk"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        logger.warning('"%s" is damaged; training starts anew', path)
        return None
    if header["task"] != task:
        logger.warning('"%s" is of other images or another version of coop; training starts anew', path)
        return None
    return state


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
