"""A folder of image features that `coop encode` wrote, as DATA: no image is read again.

The layout is that of clip-retrieval, which autofaiss and others read: img_emb/img_emb_N.npy holds float16 or float32 [n, p],
metadata/metadata_N.parquet a row for each of them. features.json says of which model and data they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import CoopError, UsageError
from ..files import FEATURES_FILE
from ..names import encodable
from .dataset import DataSet, ImageItem, class_order

FEATURES, METADATA = "img_emb", "metadata"  # folders of the shards
COLUMNS = ("path", "label", "digest", "error")  # of the metadata: texts, null where there is none


@dataclass(frozen=True)
class Encoded:
    """An image's features among the shards of a folder: `row` of shard number `shard`, made by the model `fingerprint`."""

    folder: Path
    shard: int
    row: int
    digest: str
    fingerprint: str
    exif: bool

    def features(self) -> np.ndarray:
        """The features as they were encoded, float32 [p]; of float16, normalised again. Raises CoopError for a damaged file."""
        shard = _shard(self.folder, self.shard)
        row = shard.read(self.row).astype(np.float32)
        return row if shard.dtype == np.float32 else row / max(float(np.linalg.norm(row)), 1e-12)


class _Shard:
    """A file of features that is read by rows. It is not mapped: were it cut short meanwhile, reading a map would crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = path.open("rb")
            if np.lib.format.read_magic(self.file) != (1, 0):
                raise ValueError("an unknown version")
            shape, in_columns, self.dtype = np.lib.format.read_array_header_1_0(self.file)
            if len(shape) != 2 or in_columns or self.dtype not in (np.float16, np.float32):
                raise ValueError(f"{self.dtype} {list(shape)} is not what coop encode writes")
            (self.rows, self.width), self.start = shape, self.file.tell()
            if path.stat().st_size != self.start + self.rows * self.width * self.dtype.itemsize:
                raise ValueError("it has another size than its header says")
        except (OSError, ValueError, EOFError) as error:
            self._refuse(getattr(error, "strerror", None) or str(error))

    def read(self, row: int) -> np.ndarray:
        """A row, [p]."""
        size = self.width * self.dtype.itemsize
        self.file.seek(self.start + row * size)
        content = self.file.read(size)
        if len(content) < size:
            self._refuse("it has been cut short")
        return np.frombuffer(content, self.dtype)

    def _refuse(self, reason: str) -> NoReturn:
        raise CoopError(f'"{self.path}" cannot be read: {reason}; remove it and run coop encode again')


def feature_file(folder: Path, shard: int) -> Path:
    """The file of a shard's features; when it is there, the shard is whole."""
    return folder / FEATURES / f"{FEATURES}_{shard}.npy"


def metadata_file(folder: Path, shard: int) -> Path:
    """The file of a shard's paths, labels, digests and errors."""
    return folder / METADATA / f"{METADATA}_{shard}.parquet"


def _shard(folder: Path, shard: int) -> _Shard:
    path = feature_file(folder, shard)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise CoopError(f'"{path}" cannot be read: {error.strerror or error}; run coop encode again') from error
    return _opened(path, changed)


@lru_cache(maxsize=16)
def _opened(path: Path, changed: int) -> _Shard:
    return _Shard(path)


def is_encoded(folder: Path) -> bool:
    """Whether a folder holds features rather than images."""
    return (folder / FEATURES_FILE).is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """Read features.json. Raises CoopError for one that is damaged."""
    path = folder / FEATURES_FILE
    try:
        about = json.loads(path.read_text("utf-8"))
        shards, fingerprint, exif, classes = (about[key] for key in ("shards", "fingerprint", "exif", "class_names"))
        if type(shards) is not int or not isinstance(fingerprint, str) or type(exif) is not bool:
            raise ValueError("a field has another type")
        if classes is not None and not all(isinstance(name, str) for pair in (classes, about["folders"]) for name in pair):
            raise ValueError("class names are texts")
    except OSError as error:
        raise CoopError(f'"{path}" cannot be read: {error.strerror or error}') from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CoopError(f'"{path}" is not what coop encode wrote') from error
    return dict(about)


def encoded_items(folder: Path) -> Iterator[tuple[ImageItem, str | None]]:
    """Yield each image with its label as text, a shard at a time. Raises CoopError for missing or damaged shards."""
    import pyarrow
    import pyarrow.parquet

    about = read_about(folder)
    missing = [shard for shard in range(about["shards"]) if not feature_file(folder, shard).is_file()]
    if missing:
        raise CoopError(
            f'"{folder}" is not whole: {len(missing)} of {about["shards"]} shards are missing; run the same coop encode again'
        )
    for shard in range(about["shards"]):
        path = metadata_file(folder, shard)
        try:
            columns = pyarrow.parquet.read_table(path, columns=list(COLUMNS)).to_pydict()
            rows = list(zip(*(columns[name] for name in COLUMNS), strict=True))
            if not all(value is None or isinstance(value, str) for row in rows for value in row):
                raise ValueError("its columns are not texts")
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise CoopError(f'"{path}" cannot be read: {error}; remove it and run coop encode again') from error
        if len(rows) != _shard(folder, shard).rows:
            raise CoopError(
                f'"{path}" and the features of shard {shard} are of different lengths; remove both and encode again'
            )
        for row, (name, label, digest, problem) in enumerate(rows):
            encoded = Encoded(folder, shard, row, digest or "", about["fingerprint"], about["exif"])
            reason = problem or f'image "{name}" is not here: "{folder}" holds its features, and no pixels'
            yield ImageItem(encodable(str(name)), 0, partial(_refuse, reason), None, None if problem else encoded), label


def _refuse(reason: str) -> NoReturn:
    raise CoopError(reason)


def load_encoded(folder: Path) -> DataSet:
    """List the images of a folder of features by split. Raises CoopError where they have no labels."""
    about, pairs = read_about(folder), list(encoded_items(folder))
    labelled = [(item, label) for item, label in pairs if label is not None]
    if not labelled:
        raise CoopError(f'the features in "{folder}" have no labels; coop predict takes them')
    folders = about["folders"] or class_order(label for _, label in labelled)
    names = about["class_names"] or folders
    number = {name: k for k, name in enumerate(folders)}
    if strangers := {label for _, label in labelled} - number.keys():
        raise CoopError(f'"{folder}" has images of "{min(strangers)}", which is none of its classes')
    splits: dict[str, list[ImageItem]] = {}
    for item, label in labelled:
        split = item.name.partition("/")[0] if about.get("splits") else "all"
        name = item.name.partition("/")[2] if about.get("splits") else item.name
        splits.setdefault(split, []).append(ImageItem(name, number[label], item.read, None, item.encoded))
    left = len(pairs) - len(labelled)
    return DataSet(
        str(about.get("data") or folder.name), tuple(names), tuple(folders),
        {split: tuple(items) for split, items in splits.items()},
        left_out=(f"{left} images without a label",) if left else (),
    )  # fmt: skip


def check_views(items: Iterable[ImageItem], views: int) -> bool:
    """Whether images are known by their features alone; raises UsageError where `views` of them, augmented, are asked for."""
    encoded = any(item.encoded for item in items)
    if encoded and views != 1:
        asked = f"{views} augmented views" if views else "online views"
        raise UsageError(f"DATA holds one feature for each image and no pixels, so there are no {asked}; use --views 1")
    return encoded
