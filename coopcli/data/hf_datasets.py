"""Labelled images of the `datasets` library: of the hub, or local."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CoopError, UsageError
from ..hub import prepare_hub
from .dataset import DataSet, ImageItem, by_split_name, class_order, column_named, read_file
from .lists import LABEL_COLUMNS, pick_column, warn_of_unlabelled

FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # and how `datasets` calls what reads them
PLACES = ("", "data", "train", "val", "valid", "validation", "test")  # where a data set's folder has such files
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")  # what save_to_disk leaves


def is_datasets_folder(folder: Path) -> bool:
    """Whether a folder is a saved data set or holds tables or archives, rather than class folders of images."""
    if any((folder / name).is_file() for name in SAVED):
        return True
    return any(any((folder / place).glob(f"*{ending}")) for place in PLACES for ending in FILE_KINDS)


def load_hub(source: str, image_column: str | None = None, label_column: str | None = None) -> DataSet:
    """A data set of the `datasets` library: a hub id, a local folder, or a parquet, arrow or webdataset file.

    Raises UsageError when it cannot be had; for the rest see `from_datasets`.
    """
    path = Path(source)
    if not path.exists():
        prepare_hub()
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.is_file():
            loaded: Any = datasets.load_dataset(FILE_KINDS[path.suffix.lower()], data_files=source)["train"]
        elif any((path / name).is_file() for name in SAVED[::2]):
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # the library raises many kinds: not found, offline, malformed
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if path.exists():
            raise UsageError(f'"{source}" cannot be read as a data set: {reason}') from error
        why = "the hub cannot be reached" if "OfflineModeIsEnabled" in reason else reason
        raise UsageError(
            f'there is no file or folder "{source}" here, and no data set of that name could be had: {why}'
        ) from error
    return from_datasets(loaded, path.stem if path.is_file() else path.absolute().name, image_column, label_column)


def from_datasets(loaded: Any, name: str = "data", image_column: str | None = None, label_column: str | None = None) -> DataSet:
    """The labelled images of a `datasets.Dataset`, or of a `DatasetDict` with its splits; none is read yet.

    The image column is found by its type, the label column by its type (ClassLabel) or name, unless given. Labels that
    are no ClassLabel become classes in order of size or alphabet. Raises UsageError for a streamed data set and for
    columns that cannot be told, CoopError for columns that hold no images or labels.
    """
    import datasets

    if isinstance(loaded, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise UsageError(
            f"{name} is streamed, and its labels are known only when all of it has been read; "
            "few-shot draws and accuracy need the list: load it without streaming=True"
        )
    tables: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
    features = next(iter(tables.values())).features
    image = pick_column(name, features, "image", image_column or _image_column(name, features))
    label = pick_column(name, features, "label", label_column or _label_column(name, features, image))
    values = {split: _values(name, label, features[label], table[label][:]) for split, table in tables.items()}
    if isinstance(features[label], datasets.ClassLabel):
        class_names = list(features[label].names)
    else:
        class_names = class_order(value for of_split in values.values() for value in of_split if value is not None)
    label_of = {value: row for row, value in enumerate(class_names)}
    splits = {}
    for split, table in tables.items():
        try:
            images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CoopError(f'column "{image}" of {name} holds no images but {features[image]}') from error
        items = tuple(
            ImageItem(f"{split}/{row}", label_of[value], _row_reader(images, row, image, f"{split}/{row}"))
            for row, value in enumerate(values[split])
            if value is not None
        )
        warn_of_unlabelled(f"{name}, {split}", len(values[split]) - len(items), len(values[split]))
        if items:
            splits[split] = items
    if not splits:
        raise CoopError(f'column "{label}" of {name} labels no image')
    return DataSet(name, tuple(class_names), tuple(class_names), by_split_name(splits.items()))


def _image_column(name: str, features: Mapping[str, Any]) -> str | None:
    import datasets

    def holds_images(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    return _only(name, [column for column, feature in features.items() if holds_images(feature)], ("image", "img"), "image")


def _label_column(name: str, features: Mapping[str, Any], image: str) -> str | None:
    import datasets

    by_type = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    rest = [column for column, feature in features.items() if isinstance(feature, datasets.Value) and column != image]
    return _only(name, by_type, LABEL_COLUMNS, "label") or column_named(rest, LABEL_COLUMNS)


def _only(name: str, columns: list[str], likely: Iterable[str], kind: str) -> str | None:
    """The only one of these columns, or else the one that is called as such columns are."""
    if len(columns) < 2:
        return next(iter(columns), None)
    chosen = column_named(columns, likely)
    if chosen is None:
        raise UsageError(f"{name} has {len(columns)} {kind} columns; choose one with --{kind}-column: {', '.join(columns)}")
    return chosen


def _values(name: str, column: str, feature: Any, labels: Iterable[Any]) -> list[str | None]:
    """Each row's label as text; None where it has none."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return [None if label is None or label < 0 else feature.names[label] for label in labels]
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith(("float", "double", "binary")):
        raise CoopError(f'column "{column}" of {name} holds no labels, which are whole numbers or texts, but {feature}')
    return [None if label is None or label == "" else str(label) for label in labels]


def _row_reader(table: Any, row: int, column: str, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            image = table[row][column]
        except Exception as error:  # of Arrow's and the library's many kinds
            raise CoopError(f'image "{name}" cannot be read: {error}') from error
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise CoopError(f'image "{name}" cannot be read: the data set holds none there')
        return image["bytes"] if image["bytes"] is not None else read_file(Path(image["path"]))

    return read
