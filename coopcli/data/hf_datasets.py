"""Labelled images of the `datasets` library, from the hub or local."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CoopError, UsageError
from ..files import did_you_mean
from ..hub import prepare_hub
from .columns import FLAGS, IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, TITLES, pick_column, splits_of_rows
from .columns import label_column as find_label_column
from .dataset import DataSet, ImageItem, by_split_name, class_order, columns_named, read_file, split_name
from .folders import entries_of
from .lists import missing_hint, portable, warn_of_unlabelled

FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # and the `datasets` builders that read them
SAVED_DICT, SAVED_INFO, SAVED_STATE = "dataset_dict.json", "dataset_info.json", "state.json"  # files of save_to_disk


def is_datasets_folder(folder: Path) -> bool:
    """Whether a folder is a saved data set or has tables or archives in it, rather than class folders of images."""
    if any((folder / name).is_file() for name in (SAVED_DICT, SAVED_INFO, SAVED_STATE)):
        return True
    places = [entry for entry in entries_of(folder) if (entry.name == "data" or split_name(entry.name)) and entry.is_dir()]
    return any(any(place.glob(f"*{ending}")) for place in (folder, *places) for ending in FILE_KINDS)


def load_hub(
    source: str, image_column: str | None = None, label_column: str | None = None, images_root: Path | None = None
) -> DataSet:
    """Load a data set with the `datasets` library: a hub id, a local folder, or a parquet, arrow or webdataset file.

    Paths of images start from `images_root`, or else from the folder or the file's folder. Raises UsageError when it
    cannot be loaded; for the rest see `from_datasets`.
    """
    path = Path(source)
    if not path.exists():
        prepare_hub()
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.is_file():
            loaded: Any = datasets.load_dataset(FILE_KINDS[path.suffix.lower()], data_files=source)["train"]
        elif any((path / name).is_file() for name in (SAVED_DICT, SAVED_STATE)):
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # the library raises many kinds: not found, offline, malformed
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if path.exists():
            raise UsageError(f'"{source}" cannot be read as a data set: {reason}') from error
        why = "the hub cannot be reached" if "OfflineModeIsEnabled" in reason else reason
        raise UsageError(
            f'there is no file or folder "{source}" here, and no data set of that name could be loaded: {why}'
            + did_you_mean(Path(source))
        ) from error
    name = path.stem if path.is_file() else path.absolute().name
    if not path.exists():
        return from_datasets(loaded, name, image_column, label_column)
    return from_datasets(loaded, name, image_column, label_column, path, images_root)


def from_datasets(
    loaded: Any,
    name: str = "data",
    image_column: str | None = None,
    label_column: str | None = None,
    listing: Path | None = None,
    images_root: Path | None = None,
) -> DataSet:
    """Take the labelled images of a `datasets.Dataset`, or of a `DatasetDict` with its splits; none is read yet.

    The image column is found by its type or name, the label column by its type (ClassLabel) or name, unless given. Labels
    of another type become classes in order of size or alphabet. Relative paths start from `images_root`, or from the
    folder of `listing`, the file that the table was read from. Raises UsageError for a streamed data set and for columns
    that are ambiguous or missing, CoopError for columns that hold no images or labels.
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
    label = pick_column(name, features, "label", label_column or _label_column(name, features, image, tables))
    columns = {"image": image, "label": label}
    if list(tables) == ["all"]:
        table = tables["all"]
        texts = _text_columns(table, {column for column in features if column not in (image, label)})
        by, parts = splits_of_rows(name, texts, len(table))
        if by:
            columns["split"] = by
            rows_of: dict[str, list[int]] = {}
            for row, part in enumerate(parts):
                rows_of.setdefault(part, []).append(row)
            tables = {part: table.select(rows) for part, rows in rows_of.items()}
    values = {split: _values(name, label, features[label], table[label][:]) for split, table in tables.items()}
    if isinstance(features[label], datasets.ClassLabel):
        class_names = list(features[label].names)
    else:
        class_names = class_order(value for part in values.values() for value in part if value is not None)
    label_of = {value: row for row, value in enumerate(class_names)}
    splits = {}
    for split, table in tables.items():
        try:
            images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CoopError(f'column "{image}" of {name} does not hold images but {features[image]}') from error
        reader = partial(_read_row, images, image, listing, images_root)
        items = tuple(
            ImageItem(f"{split}/{row}", label_of[value], partial(reader, row, f"{split}/{row}"))
            for row, value in enumerate(values[split])
            if value is not None
        )
        warn_of_unlabelled(f"{name}, {split}", len(values[split]) - len(items), len(values[split]))
        if items:
            splits[split] = items
    if not splits:
        raise CoopError(f'column "{label}" of {name} labels no image')
    return DataSet(name, tuple(class_names), tuple(class_names), by_split_name(splits.items()), columns)


def _image_column(name: str, features: Mapping[str, Any]) -> str | None:
    import datasets

    def holds_images(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    typed = [column for column, feature in features.items() if holds_images(feature)]
    if typed:
        return _only(name, typed, ("image", "img"), "image")
    texts = [column for column, feature in features.items() if _is_text(feature)]
    return _only(name, columns_named(texts, IMAGE_COLUMNS), (), "image")  # paths


def _label_column(name: str, features: Mapping[str, Any], image: str, tables: Mapping[str, Any]) -> str | None:
    import datasets

    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if typed:
        return _only(name, typed, LABEL_COLUMNS, "label")
    values = {column for column, feature in features.items() if isinstance(feature, datasets.Value) and column != image}
    return find_label_column(name, _text_columns(next(iter(tables.values())), values))


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _text_columns(table: Any, columns: Collection[str]) -> dict[str, list[str]]:
    """Read these columns as texts, but only those whose name may be that of labels or splits: the others may be large."""
    known = columns_named(columns, (*LABEL_COLUMNS, TITLES, *SPLIT_COLUMNS, *FLAGS))
    return {column: ["" if value is None else str(value).strip() for value in table[column][:]] for column in known}


def _only(name: str, columns: list[str], likely: Iterable[str], kind: str) -> str | None:
    """Return the only one of these columns, or else the one with the likeliest name."""
    if len(columns) < 2:
        return next(iter(columns), None)
    chosen = columns_named(columns, likely)
    if not chosen:
        raise UsageError(f"{name} has {len(columns)} {kind} columns; choose one with --{kind}-column: {', '.join(columns)}")
    return chosen[0]


def _values(name: str, column: str, feature: Any, labels: Iterable[Any]) -> list[str | None]:
    """Return each row's label as text; None where it has none."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return [None if label is None or label < 0 else feature.names[label] for label in labels]
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith(("float", "double", "binary")):
        raise CoopError(f'column "{column}" of {name} does not hold labels (whole numbers or texts) but {feature}')
    return [None if label is None or label == "" else str(label).strip() for label in labels]


def _read_row(table: Any, column: str, listing: Path | None, images_root: Path | None, row: int, name: str) -> bytes:
    try:
        image = table[row][column]
    except Exception as error:  # of Arrow's and the library's many kinds
        raise CoopError(f'image "{name}" cannot be read: {error}') from error
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise CoopError(f'image "{name}" cannot be read: the data set has no image in this row')
    if image["bytes"] is not None:
        return image["bytes"]
    path = Path(portable(image["path"]))
    if path.is_absolute() or listing is None:
        return read_file(path)
    root = images_root or (listing if listing.is_dir() else listing.parent)
    return read_file(root / path, missing_hint(listing, root))
