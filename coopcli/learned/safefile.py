"""Files that may come from anyone: safetensors with one JSON entry, of which nothing is believed before it is checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import CoopError, UsageError
from ..files import CELLS_FOLDER, HEAD_FILE, PROMPT_FILE, write_atomically
from ..version import __version__

FORMAT_VERSION = 1
# One metadata entry: safetensors keeps several in no fixed order, and equal runs must give equal bytes.
ENTRY = "coop"
# No real file comes near these bounds, and within them a file costs little to refuse.
MAX_FILE = 2**30  # bytes: class-specific contexts of ImageNet's 21 thousand classes
MAX_HEADER = 4 * 2**20  # bytes: their names and folders twice over; hostile JSON takes thirty times its size in memory
MAX_NAME = 1000  # characters of a class name
DTYPES = {"F32": torch.float32, "I64": torch.int64}

Checks = Mapping[str, Callable[[Any], bool]]  # what each entry of the header must be
Layout = Mapping[str, tuple[str, list[int]]]  # dtype and shape of each tensor, in the order of the file


@dataclass(frozen=True)
class Contents:
    """What a file holds: coop's entry of its header, its table of tensors as it is written there, and the numbers."""

    path: Path
    entry: dict[str, Any]
    table: dict[str, Any]
    numbers: bytearray

    def check(self, checks: Checks) -> None:
        """Raises CoopError, with their names, for entries that are absent or not what they must be."""
        if wrong := [name for name, holds in checks.items() if name not in self.entry or not holds(self.entry[name])]:
            raise CoopError(f'"{self.path}" lacks or garbles an entry of its header: {", ".join(wrong)}')

    def tensors(self, layout: Layout) -> dict[str, Tensor]:
        """The tensors of just this layout, which take all of the numbers. They share memory with them.

        Raises CoopError for a table that says otherwise, and for NaN or infinite numbers.
        """
        expected, starts, end = {}, {}, 0
        for name, (dtype, shape) in layout.items():
            starts[name], end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
            expected[name] = {"dtype": dtype, "shape": shape, "data_offsets": [starts[name], end]}
        if end == 0 or end != len(self.numbers) or self.table != expected:
            raise CoopError(f'"{self.path}" holds {len(self.numbers)} bytes for {brief(self.table)}; its header says otherwise')
        found = {}
        for name, (dtype, shape) in layout.items():
            flat = torch.frombuffer(self.numbers, dtype=DTYPES[dtype], count=math.prod(shape), offset=starts[name])
            if not torch.stack(flat.aminmax()).isfinite().all():  # NaN prevails in both; without a copy of the tensor
                raise CoopError(f'"{self.path}" holds NaN or infinite numbers in its {name}')
            found[name] = flat.view(shape)
        return found


def write(path: Path, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write such a file in one step: it is there whole, or as it was before."""
    header = {"format_version": FORMAT_VERSION, "coop_version": __version__, **entry}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(kept, metadata={ENTRY: json.dumps(header, ensure_ascii=False)}))


def read(path: Path) -> Contents:
    """Read such a file, or the one in a run folder. No pickle is involved.

    Raises UsageError for a path without one, CoopError for a file that is too large or of a newer coop.
    """
    try:
        if path.is_dir():
            path = next((path / name for name in (PROMPT_FILE, HEAD_FILE) if (path / name).exists()), path / PROMPT_FILE)
        if not path.is_file():
            hint = f"; those of a sweep lie in its folder {CELLS_FOLDER}" if (path.parent / CELLS_FOLDER).is_dir() else ""
            raise UsageError(f'there is no prompt file "{path}"{hint}')
        with path.open("rb") as file:
            outer = _read_header(file, path)
            entry = _parse(outer.pop("__metadata__")[ENTRY])
            if type(entry) is not dict:
                raise ValueError("not an object")
            numbers = bytearray(os.fstat(file.fileno()).st_size - file.tell())
            if file.readinto(numbers) != len(numbers):
                raise ValueError("shorter than it was")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f'"{path}" is no prompt file of coop ({PROMPT_FILE} of `coop fit` or {HEAD_FILE} of `coop sweep`)'
        ) from error
    version = entry.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CoopError(f'"{path}" was written by a newer coop ({brief(entry.get("coop_version"))}); this is {__version__}')
    return Contents(path, entry, outer, numbers)


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


def is_text(entry: object, most: int = MAX_NAME) -> bool:
    """Whether this is a text of bounded length."""
    return type(entry) is str and len(entry) <= most


def is_names(entry: object) -> bool:
    """Whether this is a list of texts, at least one."""
    return type(entry) is list and len(entry) > 0 and all(map(is_text, entry))


# What prompts and heads both say of the classes, the model and how they came about.
ORIGIN_CHECKS: Checks = {
    "format_version": lambda entry: type(entry) is int and entry >= 1,
    "class_names": is_names,
    "folders": is_names,
    "model": is_text,
    "revision": lambda entry: entry is None or (is_text(entry) and ".." not in entry),  # it becomes part of a path
    "fingerprint": is_text,
    "training": lambda entry: type(entry) is dict,
}


def brief(entry: object) -> str:
    """Something from the file, fit for a line of error."""
    text = str(entry)[:100]
    return text if text.isprintable() else ascii(text)
