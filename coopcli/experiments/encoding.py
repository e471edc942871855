"""Encode any number of images into shards of features, by any number of processes: memory grows with neither.

A shard is a file of features and a table beside it (data/encoded.py). A finished file is a finished shard: the same command
does the rest, whatever ended the one before, and processes that share the folder each claim the next shard that nobody does.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from ..choices import FeatureDtype, OnError
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.decoders import Submit, decoders
from ..clip.image_features import stream_features
from ..data.dataset import DataSet, ImageItem
from ..data.encoded import COLUMNS, FEATURES, METADATA, feature_file, metadata_file
from ..data.streams import samples
from ..errors import CoopError, UsageError
from ..files import FEATURES_FILE, parse_json, partial_of, remove_partials, write_json
from ..parallel import launched
from .claims import claimed, holder
from .folder_lock import locked

MEMORY = 2**24  # bytes of features that are kept in case an image comes again soon
LEAST, MOST, PARTS = 256, 10_000, 64  # images of a shard at least and at most; between these, shards of a data set
AT_ONCE = 256  # rows to write at once
POLL = 0.5  # seconds between two looks at what other processes do
PATIENCE = 10.0  # seconds that another process may need to begin in the same folder

Labelled = tuple[ImageItem, str | None]  # an image, and its label as text


@dataclass(frozen=True)
class Source:
    """What is encoded: `shards` parts, each of which `images_of` lists anew; `about` says what they are, for features.json."""

    shards: int
    images_of: Callable[[int], Iterable[Labelled]]
    about: dict[str, Any]


def of_dataset(dataset: DataSet) -> Source:
    """The images of a data set, each named with its split before it where there are splits."""
    split = set(dataset.splits) != {"all"}
    items = [
        (
            ImageItem(f"{name}/{item.name}" if split else item.name, item.label, item.read, item.path),
            dataset.folders[item.label],
        )
        for name, of_split in dataset.splits.items()
        for item in of_split
    ]
    size = min(MOST, max(LEAST, math.ceil(len(items) / PARTS)))
    listed = [(item.name, label) for item, label in items]
    about = {
        "data": dataset.name,
        "class_names": list(dataset.class_names),
        "folders": list(dataset.folders),
        "splits": split,
        "listed": _digest(listed),
    }
    return Source(math.ceil(len(items) / size), lambda shard: items[shard * size : (shard + 1) * size], about)


def of_files(files: Sequence[str], name: str, image_column: str | None, label_column: str | None) -> Source:
    """The images of tars or parquet tables, a shard for each file."""

    def images_of(shard: int) -> Iterator[Labelled]:
        for inner, content, label in samples(files[shard], image_column, label_column):
            yield ImageItem(f"{files[shard]}/{inner}", 0, _Once(content)), label

    about = {"data": name, "class_names": None, "folders": None, "splits": False, "listed": _digest(list(files))}
    return Source(len(files), images_of, about)


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode("utf-8", "surrogateescape")).hexdigest()


class _Once:
    """Bytes that are read once, and then free."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __call__(self) -> bytes:
        content, self.content = self.content, b""
        return content


class _Digested:
    """Reads an image's file and remembers the digest of its bytes."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self.read, self.digest = read, ""

    def __call__(self) -> bytes:
        content = self.read()
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return content


@dataclass(frozen=True)
class Counts:
    """What a folder of features holds: shards, images, and how many of these could not be read."""

    shards: int
    images: int
    unreadable: int


def begin(folder: Path, source: Source, backbone: Backbone, dtype: FeatureDtype) -> None:
    """Write features.json. Raises UsageError where the folder holds features of another model or other images."""
    about = {
        **source.about,
        "shards": source.shards,
        "dtype": dtype,
        "model": backbone.name,
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint,
        "exif": backbone.exif,
        "computed": f"{backbone.dtype} on {backbone.device.type}",
    }
    path = folder / FEATURES_FILE
    with locked(folder, PATIENCE):
        if path.exists():
            before: Any = None
            with suppress(OSError, ValueError):
                before = parse_json(path.read_text("utf-8"))
            changed = [key for key, value in about.items() if not isinstance(before, dict) or before.get(key) != value]
            if changed:
                raise UsageError(
                    f'"{folder}" holds features of other images or settings ({", ".join(changed)}); use another --output'
                )
            return
        if any((folder / name).exists() for name in (FEATURES, METADATA)):
            raise UsageError(f'"{folder}" holds {FEATURES} or {METADATA} of something else; use another --output')
        write_json(path, about)


def encode(
    folder: Path,
    source: Source,
    backbone: Backbone,
    dtype: FeatureDtype,
    on_error: OnError = "skip",
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Counts | None:
    """Encode the shards that are not there yet; returns what the folder then holds, after `begin`.

    Other processes may do the same: each shard is done by one of them. Of the processes of a torchrun or srun the first waits
    for the others' shards; the others return None. Raises CoopError for a file of images that is damaged, and with `on_error`
    "fail" for an image that cannot be read; else such an image has a row of zeros, and the reason in the table beside it.
    """
    for name in (FEATURES, METADATA):
        (folder / name).mkdir(exist_ok=True)
        remove_partials(folder / name)
    cache = FeatureCache(None)
    cache.limit(MEMORY)
    claims = folder / "claims"
    with decoders(many=True) as submit:  # kept for all shards
        while left := [shard for shard in range(source.shards) if not feature_file(folder, shard).exists()]:
            on_shard(source.shards - len(left), source.shards)
            progressed = False
            for shard in left:
                if feature_file(folder, shard).exists() or holder(claims / str(shard)):
                    continue
                with claimed(claims / str(shard)) as mine:
                    if mine and not feature_file(folder, shard).exists():
                        _write_shard(folder, shard, source.images_of(shard), backbone, dtype, cache, on_error, submit)
                        progressed = True
                        on_shard(sum(feature_file(folder, n).exists() for n in range(source.shards)), source.shards)
            if not progressed:
                if launched().rank:
                    return None
                sleep(POLL)
    if launched().rank:
        return None
    on_shard(source.shards, source.shards)
    shutil.rmtree(claims, ignore_errors=True)
    return count(folder, source.shards)


def count(folder: Path, shards: int) -> Counts:
    """Count the images of all shards."""
    import pyarrow.parquet

    images = unreadable = 0
    for shard in range(shards):
        errors = pyarrow.parquet.read_table(metadata_file(folder, shard), columns=["error"])["error"]
        images += len(errors)
        unreadable += len(errors) - errors.null_count
    return Counts(shards, images, unreadable)


def _write_shard(
    folder: Path,
    shard: int,
    images: Iterable[Labelled],
    backbone: Backbone,
    dtype: FeatureDtype,
    cache: FeatureCache,
    on_error: OnError,
    submit: Submit,
) -> None:
    import pyarrow
    import pyarrow.parquet

    labels: deque[str | None] = deque()  # of images that are on their way

    def items() -> Iterator[ImageItem]:
        for item, label in images:
            labels.append(label)
            yield ImageItem(item.name, 0, _Digested(item.read), item.path)

    table_at, features_at = metadata_file(folder, shard), feature_file(folder, shard)
    table_part, features_part = partial_of(table_at), partial_of(features_at)
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    try:
        with (
            _Rows(features_part, np.dtype(dtype), backbone.feature_width) as features,
            pyarrow.parquet.ParquetWriter(table_part, schema) as table,
            closing(stream_features(backbone, items(), cache, submit)) as stream,
        ):
            rows: list[tuple[str | None, ...]] = []
            numbers: list[np.ndarray] = []

            def write() -> None:
                if rows:
                    columns = zip(*rows, strict=True)
                    table.write_table(pyarrow.table(dict(zip(COLUMNS, map(list, columns), strict=True)), schema=schema))
                    features.add(np.stack(numbers))
                rows.clear()
                numbers.clear()

            for item, outcome in stream:
                if isinstance(outcome, CoopError) and on_error == "fail":
                    raise outcome
                error = str(outcome) if isinstance(outcome, CoopError) else None
                digest = item.read.digest if isinstance(item.read, _Digested) else ""
                rows.append((item.name, labels.popleft(), digest or None, error))
                numbers.append(
                    np.zeros(backbone.feature_width, np.float32) if isinstance(outcome, CoopError) else outcome.numpy()
                )
                if len(rows) == AT_ONCE:
                    write()
            write()
        table_part.replace(table_at)
        features_part.replace(features_at)  # last: what is there is whole
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    finally:
        for path in (table_part, features_part):
            with suppress(OSError):
                path.unlink(missing_ok=True)


class _Rows:
    """An .npy file that grows by rows: its header, of a fixed length, is written again at the end."""

    LENGTH = 128

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int) -> None:
        self.dtype, self.width, self.count = dtype, width, 0
        self.file = path.open("wb")
        self.file.write(self._header())

    def _header(self) -> bytes:
        about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.count, self.width)}
        text = repr(about).ljust(self.LENGTH - 11) + "\n"
        return b"\x93NUMPY\x01\x00" + (self.LENGTH - 10).to_bytes(2, "little") + text.encode("latin1")

    def add(self, rows: np.ndarray) -> None:
        """Write rows [n, width]."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.count += len(rows)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.file.seek(0)
            self.file.write(self._header())
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
