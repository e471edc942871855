"""The learned prompt on disk: one safetensors file, the context in float32 and all that is needed to use it."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from .errors import CoopError, UsageError
from .prompts import ContextSettings, Position
from .version import __version__

FORMAT_VERSION = 1
# One metadata entry: safetensors keeps several in no fixed order, and equal runs must give equal bytes.
ENTRY = "coop"
# A prompt file may come from anyone. No real one comes near these bounds, and within them a file costs little to refuse.
MAX_FILE = 2**30  # bytes: class-specific contexts of ImageNet's 21 thousand classes
MAX_HEADER = 4 * 2**20  # bytes: their names and folders twice over; hostile JSON takes thirty times its size in memory
MAX_ROWS = 512  # of a context; OpenAI's models read 77 tokens, Long-CLIP 248
MAX_NAME = 1000  # characters of a class name


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
    """Read a prompt file. No pickle is involved, and nothing in the file is believed before it is checked.

    Raises UsageError for a path without a prompt file, CoopError for a file that contradicts itself.
    """
    try:
        if path.is_dir():  # a run folder
            path = path / "prompt.safetensors"
        if not path.is_file():
            raise UsageError(f'there is no prompt file "{path}"')
        with path.open("rb") as file:
            outer = _read_header(file, path)
            header = _parse(outer["__metadata__"][ENTRY])
            if type(header) is not dict:
                raise ValueError("not an object")
            numbers = bytearray(os.fstat(file.fileno()).st_size - file.tell())
            if file.readinto(numbers) != len(numbers):
                raise ValueError("shorter than it was")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f'"{path}" is no prompt file of coop (a prompt.safetensors that `coop fit` wrote)') from error
    version = header.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CoopError(f'"{path}" was written by a newer coop ({_brief(header.get("coop_version"))}); this is {__version__}')
    if wrong := [name for name, holds in _CHECKS.items() if name not in header or not holds(header[name])]:
        raise CoopError(f'"{path}" lacks or garbles an entry of its header: {", ".join(wrong)}')
    names, folders, settings = header["class_names"], header["folders"], ContextSettings(**header["context"])
    if len(names) != len(folders):
        raise CoopError(f'"{path}" names {len(names)} classes and {len(folders)} folders of them')
    shape = [len(names)] * settings.csc + [settings.n_ctx]
    # The width is what the numbers leave; the file must say just that, and hold nothing else.
    size = len(numbers)
    shape.append(size // (4 * math.prod(shape)))
    tensors = {name: entry for name, entry in outer.items() if name != "__metadata__"}
    expected = {"context": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    if size == 0 or size != 4 * math.prod(shape) or tensors != expected:
        raise CoopError(f'"{path}" holds {size} bytes for {_brief(tensors)}; its header says otherwise')
    context = torch.frombuffer(numbers, dtype=torch.float32).view(shape)
    if not torch.stack(context.aminmax()).isfinite().all():  # NaN prevails in both; without a copy of the context
        raise CoopError(f'"{path}" holds a context with NaN or infinite numbers')
    return LearnedPrompt(
        context=context,
        settings=settings,
        class_names=tuple(names),
        folders=tuple(folders),
        model=header["model"],
        revision=header["revision"],
        fingerprint=header["fingerprint"],
        training=header["training"],
    )


def _read_header(file: BinaryIO, path: Path) -> Any:
    """The safetensors header, read here and not by the library, which maps files of any size and keeps the last of two keys.

    Raises CoopError for a file or header over the bounds, ValueError for anything else that is none.
    """
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("the header is longer than the file")
    for what, wanted, most in (("file", size, MAX_FILE), ("header", length, MAX_HEADER)):
        if wanted > most:
            raise CoopError(f'"{path}" has a {what} of {wanted} bytes; that of a prompt has at most {most}')
    return _parse(file.read(length).decode())


def _parse(text: str) -> Any:
    """JSON without twofold keys and lone surrogates: nothing could print or hash them. Raises ValueError, RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a key comes twice")
        return entries

    content = json.loads(text, object_pairs_hook=unique)
    json.dumps(content, ensure_ascii=False).encode()
    return content


def _is_text(entry: object, most: int = MAX_NAME) -> bool:
    return type(entry) is str and len(entry) <= most


def _is_names(entry: object) -> bool:
    return type(entry) is list and len(entry) > 0 and all(map(_is_text, entry))


def _is_context(entry: object) -> bool:
    if type(entry) is not dict or set(entry) != {"n_ctx", "position", "csc"}:
        return False
    n_ctx, csc = entry["n_ctx"], entry["csc"]
    return type(n_ctx) is int and 1 <= n_ctx <= MAX_ROWS and type(csc) is bool and entry["position"] in get_args(Position)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "format_version": lambda entry: type(entry) is int and entry >= 1,
    "class_names": _is_names,
    "folders": _is_names,
    "context": _is_context,
    "model": _is_text,
    "revision": lambda entry: entry is None or (_is_text(entry) and ".." not in entry),  # it becomes part of a path
    "fingerprint": _is_text,
    "training": lambda entry: type(entry) is dict,
}


def _brief(entry: object) -> str:
    """Something from the file, fit for a line of error."""
    text = str(entry)[:100]
    return text if text.isprintable() else ascii(text)


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
