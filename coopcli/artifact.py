"""The learned prompt on disk: one safetensors file, the context in float32 and all that is needed to use it."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import CoopError, UsageError
from .prompts import ContextSettings
from .version import __version__

FORMAT_VERSION = 1
# One metadata entry: safetensors keeps several in no fixed order, and equal runs must give equal bytes.
ENTRY = "coop"


@dataclass(frozen=True)
class LearnedPrompt:
    """A learned context, float32 [M, d] or class-specific [K, M, d], with what it was learned for and on.

    `fingerprint` is the backbone's; `folders` are the data's own names of the classes; `training` describes recipe,
    data and versions for the reader.
    """

    context: Tensor
    settings: ContextSettings
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    model: str
    revision: str | None
    fingerprint: str
    training: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file in one step: it is there whole, or as it was before."""
        header = {
            "format_version": FORMAT_VERSION,
            "coop_version": __version__,
            "model": self.model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "context": asdict(self.settings),
            "class_names": self.class_names,
            "folders": self.folders,
            "training": self.training,
        }
        tensors = {"context": self.context.contiguous()}
        write_atomically(path, save(tensors, metadata={ENTRY: json.dumps(header, ensure_ascii=False)}))


def load_prompt(path: Path) -> LearnedPrompt:
    """Read a prompt file. No pickle is involved.

    Raises UsageError for a path without a prompt file, CoopError for a file that contradicts itself.
    """
    if path.is_dir():  # a run folder
        path = path / "prompt.safetensors"
    if not path.is_file():
        raise UsageError(f'there is no prompt file "{path}"')
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[ENTRY])
            context = file.get_tensor("context")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(f'"{path}" is no prompt file of coop (a prompt.safetensors that `coop fit` wrote)') from error
    try:
        if header["format_version"] > FORMAT_VERSION:
            raise CoopError(f'"{path}" was written by a newer coop ({header["coop_version"]}); this is {__version__}')
        prompt = LearnedPrompt(
            context=context,
            settings=ContextSettings(**header["context"]),
            class_names=tuple(header["class_names"]),
            folders=tuple(header["folders"]),
            model=header["model"],
            revision=header["revision"],
            fingerprint=header["fingerprint"],
            training=header["training"],
        )
    except (KeyError, TypeError) as error:
        raise CoopError(f'"{path}" lacks or garbles an entry of its header: {error}') from error
    shape = [len(prompt.class_names)] * prompt.settings.csc + [prompt.settings.n_ctx]
    if context.dtype != torch.float32 or list(context.shape[:-1]) != shape:
        raise CoopError(f'"{path}" holds a {context.dtype} context of shape {list(context.shape)}; its header says otherwise')
    if not context.isfinite().all():
        raise CoopError(f'"{path}" holds a context with NaN or infinite numbers')
    return prompt


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, a crash or Ctrl-C never meets half of it. Raises CoopError when it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CoopError(f'"{path}" cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
