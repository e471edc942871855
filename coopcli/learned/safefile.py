"""Safetensors files with one JSON entry, which may come from anyone: nothing in them is believed before it is checked."""

from __future__ import annotations

import io
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
from ..files import CELLS_FOLDER, HEAD_FILE, PROMPT_FILE
from ..version import __version__

FORMAT_VERSION = 1
# One metadata entry: safetensors keeps several in no fixed order, and equal runs must give equal bytes.
ENTRY = "coop"
# No real file comes near these bounds, and within them a file costs little to refuse.
MAX_FILE = 2**31  # bytes: class-specific contexts of ImageNet's 21 thousand classes, 16 vectors of up to 1,280 numbers each
MAX_HEADER = 4 * 2**20  # bytes: twice their names and folders; hostile JSON takes thirty times its size in memory
MAX_NAME = 1000  # characters of a class name
DTYPES = {"F32": torch.float32, "I64": torch.int64}

Checks = Mapping[str, Callable[[Any], bool]]  # what each entry of the header must be
TensorSpecs = Mapping[str, tuple[str, list[int]]]  # dtype and shape of each tensor, in the order of the file


@dataclass(frozen=True)
class Contents:
    """The contents of a file: coop's entry of its header, its table of tensors as it stands there, and the numbers."""

    path: Path
    entry: dict[str, Any]
    table: dict[str, Any]
    numbers: bytearray

    def check(self, checks: Checks) -> None:
        """Raise CoopError, with their names, for entries that are absent or not what they must be."""
        if wrong := [name for name, holds in checks.items() if name not in self.entry or not holds(self.entry[name])]:
            raise CoopError(f'"{self.path}" lacks or garbles an entry of its header: {", ".join(wrong)}')

    def tensors(self, specs: TensorSpecs) -> dict[str, Tensor]:
        """Get exactly these tensors, which must take all of the numbers and share memory with them.

        Raises CoopError for another table of tensors, and for NaN or infinite numbers.
        """
        expected, starts, end = {}, {}, 0
        for name, (dtype, shape) in specs.items():
            starts[name], end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
            expected[name] = {"dtype": dtype, "shape": shape, "data_offsets": [starts[name], end]}
        if end == 0 or end != len(self.numbers) or self.table != expected:
            raise CoopError(f'"{self.path}" holds {len(self.numbers)} bytes for {brief(self.table)}; its header says otherwise')
        tensors = {}
        for name, (dtype, shape) in specs.items():
            flat = torch.frombuffer(self.numbers, dtype=DTYPES[dtype], count=math.prod(shape), offset=starts[name])
            if not torch.stack(flat.aminmax()).isfinite().all():  # NaN prevails in both; without a copy of the tensor
                raise CoopError(f'"{self.path}" holds NaN or infinite numbers in its {name}')
            tensors[name] = flat.view(shape)
        return tensors


def content_of(path: Path, entry: dict[str, Any], tensors: Mapping[str, Tensor], check: Callable[[Contents], object]) -> bytes:
    """Make the bytes of such a file. Raises CoopError when `check`, the check of reading, refuses them."""
    header = {"format_version": FORMAT_VERSION, "coop_version": __version__, **entry}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        content = save(kept, metadata={ENTRY: json.dumps(header, ensure_ascii=False)})
        check(parse(io.BytesIO(content), path))
    except (ValueError, TypeError, RecursionError) as error:
        raise CoopError(f'"{path}" could not be read again, so it is not written: {error}') from error
    return content


def read(path: Path) -> Contents:
    """Read such a file, or the one in a run folder. No pickle is involved.

    Raises UsageError for a path without one, CoopError for a file that is too large or written by a newer coop.
    """
    try:
        if path.is_dir():
            path = next((path / name for name in (PROMPT_FILE, HEAD_FILE) if (path / name).exists()), path / PROMPT_FILE)
        if not path.is_file():
            hint = f"; those of a sweep are in its folder {CELLS_FOLDER}" if (path.parent / CELLS_FOLDER).is_dir() else ""
            raise UsageError(f'no prompt file "{path}"{hint}')
        with path.open("rb") as file:
            contents = parse(file, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f'"{path}" is not a prompt file of coop ({PROMPT_FILE} of `coop fit` or {HEAD_FILE} of `coop sweep`)'
        ) from error
    version = contents.entry.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        newer = brief(contents.entry.get("coop_version"))
        raise CoopError(f'"{path}" was written by a newer coop ({newer}); this is {__version__}')
    return contents


def parse(file: BinaryIO, path: Path, most: int = MAX_FILE) -> Contents:
    """Parse a file of at most so many bytes, here and not with the library, which maps files of any size and keeps the last
    of two equal keys.

    Raises CoopError for a file or header over the bounds; ValueError, KeyError, TypeError, AttributeError or RecursionError
    for anything that is not such a file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("the header is longer than the file")
    for what, wanted, bound in (("file", size, most), ("header", length, MAX_HEADER)):
        if wanted > bound:
            raise CoopError(f'"{path}" has a {what} of {wanted} bytes; at most {bound} are allowed')
    table = _json(file.read(length).decode())
    entry = _json(table.pop("__metadata__")[ENTRY])
    if type(entry) is not dict:
        raise ValueError("the entry of coop is not an object")
    numbers = bytearray(size - file.tell())
    if file.readinto(numbers) != len(numbers):  # type: ignore[attr-defined]
        raise ValueError("the file is shorter than it was")
    return Contents(path, entry, table, numbers)


def _json(text: str) -> Any:
    """Parse JSON; reject duplicate keys, lone surrogates and numbers that are not finite. Raises ValueError, RecursionError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a key occurs twice")
        return entries

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:20]} is not a finite number")
        return value

    content = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    json.dumps(content, ensure_ascii=False).encode()
    return content


def is_text(entry: object, most: int = MAX_NAME) -> bool:
    """Tell whether this is a text of bounded length."""
    return type(entry) is str and len(entry) <= most


def is_names(entry: object) -> bool:
    """Tell whether this is a list of one or more such texts."""
    return type(entry) is list and len(entry) > 0 and all(map(is_text, entry))


def brief(entry: object) -> str:
    """Something from a file, made fit for one line of an error message."""
    text = str(entry)[:100]
    return text if text.isprintable() else ascii(text)
