"""Files of many images each, read from end to end: webdataset tars and parquet tables, here or at a URL that fsspec knows."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any

from ..errors import CoopError, UsageError
from .columns import LABEL_COLUMNS
from .dataset import MOST_BYTES, columns_named
from .formats import IMAGE_ENDINGS

ENDINGS = (".tar", ".parquet")
ROWS = 64  # of a parquet table, in memory at a time
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}  # of coopcli, by the kind of URL

Sample = tuple[str, bytes, str | None]  # an image's name, its file's bytes, its label


def find_files(source: str) -> list[str]:
    """The tars or parquet tables that a path, glob or URL names, sorted; none where it names something else.

    Raises UsageError for a glob without files, and for a kind of URL that needs a package which is missing.
    """
    if not source.lower().endswith(ENDINGS):
        return []
    system, path = _file_system(source)
    if re.search(r"[*?[{]", path):
        files = sorted(str(file) for one in _braces(path) for file in system.glob(one))
    else:
        files = [path] if system.exists(path) else []
    if not files:
        raise UsageError(f'there is no file "{source}"')
    return [system.unstrip_protocol(file) if "://" in source else file for file in files]


def _braces(path: str) -> Iterator[str]:
    """Spell out webdataset's ranges: part-{000..123}.tar."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if not found:
        yield path
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(f"{path[: found.start()]}{number:0{len(first)}}{path[found.end() :]}")


def _file_system(source: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.url_to_fs(source)
    except (ImportError, ValueError) as error:
        scheme = source.partition("://")[0]
        extra = EXTRAS.get(scheme)
        help_ = f"needs a package: pip install 'coopcli[{extra}]'" if extra else f"cannot be opened: {error}"
        raise UsageError(f'"{source}" {help_}') from error
    return system, path


def samples(file: str, image_column: str | None = None, label_column: str | None = None) -> Iterator[Sample]:
    """Yield the images of one file, in its order, a few in memory at a time. Raises CoopError for a damaged one."""
    import pyarrow

    with _opened(file) as stream:
        try:
            if file.lower().endswith(".tar"):
                yield from _of_tar(stream, label_column)
            else:
                yield from _of_parquet(file, stream, image_column, label_column)
        except (tarfile.TarError, EOFError, pyarrow.ArrowException, OSError) as error:
            raise CoopError(f'"{file}" cannot be read: {error}') from error


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    system, path = _file_system(file)
    try:
        stream = system.open(path, "rb")
    except OSError as error:
        raise CoopError(f'"{file}" cannot be read: {error.strerror or error}') from error
    with stream:
        yield stream


def _of_tar(stream: IO[bytes], label_column: str | None) -> Iterator[Sample]:
    """A sample is the files in a row that differ in their endings alone: image, and .cls, .json or .txt with its label."""
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        members = (member for member in tar if member.isfile())
        for key, files in groupby(members, key=_key):
            parts = {}
            for member in files:
                large = member.size > MOST_BYTES  # not read: an image of that size counts as unreadable
                if opened := tar.extractfile(member):
                    parts[member.name] = b"" if large else opened.read()
            label = _label_of({name[len(key) + 1 :].lower(): content for name, content in parts.items()}, label_column)
            for name, content in parts.items():
                if PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS:
                    yield name, content, label


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _label_of(parts: dict[str, bytes], label_column: str | None) -> str | None:
    try:
        if "json" in parts:
            content = json.loads(parts["json"])
            columns = [label_column] if label_column in content else columns_named(content, LABEL_COLUMNS)
            if columns and isinstance(content[columns[0]], (str, int)):
                return str(content[columns[0]]).strip()
        for ending in (label_column, "cls", "txt"):
            if ending in parts:
                return parts[ending].decode("utf-8").strip()
    except (ValueError, TypeError, AttributeError):
        return None
    return None


def _of_parquet(file: str, stream: IO[bytes], image_column: str | None, label_column: str | None) -> Iterator[Sample]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(stream)
    schema = table.schema_arrow
    image = image_column or _image_column(file, schema)
    labels = [label_column] if label_column else columns_named(schema.names, LABEL_COLUMNS)
    for column in (image, *labels[:1]):
        if column not in schema.names:
            raise UsageError(f'"{file}" has no column "{column}"; it has: {", ".join(schema.names)}')
    classes = _class_names(schema, labels[0]) if labels else None
    number = 0
    for batch in table.iter_batches(ROWS, columns=[image, *labels[:1]]):
        rows = batch.to_pydict()
        of_labels = rows[labels[0]] if labels else [None] * batch.num_rows
        for content, label in zip(rows[image], of_labels, strict=True):
            inner = content if isinstance(content, dict) else {"bytes": content, "path": None}
            name = f"{number}" + (f"/{inner['path']}" if inner.get("path") else "")
            if classes and isinstance(label, int):
                label = classes[label] if 0 <= label < len(classes) else None
            yield name, inner.get("bytes") or b"", None if label is None else str(label).strip()
            number += 1


def _image_column(file: str, schema: Any) -> str:
    import pyarrow.types

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return "bytes" in [field.name for field in kind]
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    columns = [field.name for field in schema if holds_bytes(field.type)]
    columns = columns if len(columns) < 2 else columns_named(columns, IMAGE_NAMES)[:1]
    if not columns:
        raise UsageError(
            f'no column of "{file}" is known to hold images; choose one with --image-column: {", ".join(schema.names)}'
        )
    return columns[0]


def _class_names(schema: Any, label: str) -> Sequence[str] | None:
    """The names that the `datasets` library keeps in a table for the numbers of its labels."""
    try:
        about = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in about["names"]]
    except (TypeError, KeyError, ValueError):
        return None
