"""Sorting images into a folder for each class, without ever overwriting one."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import CoopError
from ..names import distinct, encodable

NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}  # where a copy may do


def class_folders(class_names: Sequence[str]) -> dict[str, str]:
    """Name a folder for each class: its name, without what file systems refuse; no two classes share one."""
    plain = [re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "-", encodable(name)).strip(" .") or "unnamed" for name in class_names]
    return dict(zip(class_names, distinct(plain), strict=True))


def sort_image(image: Path, folder: Path, link: bool = False) -> Path:
    """Move an image into a folder, or make a symbolic link to it there; returns the path it has now.

    The folder is made if needed. A file that is there already keeps its name, and the image gets a number: "cat (2).jpg".
    Raises CoopError when the image cannot be moved; it then stays where it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if image.parent.samefile(folder):
            return image
        for place in _places(folder, image.name):
            try:
                if link and place.is_symlink() and place.samefile(image):
                    return place  # by an earlier command
                if link:
                    place.symlink_to(image.absolute())
                else:
                    _move(image, place)
                return place
            except FileExistsError:
                continue
    except OSError as error:
        what = "linked" if link else "moved"
        raise CoopError(f'image "{image}" cannot be {what} into "{folder}": {error.strerror or error}') from error
    raise CoopError(f'"{folder}" has too many files named "{image.name}"')


def _places(folder: Path, name: str) -> Iterator[Path]:
    stem, ending = os.path.splitext(name)  # noqa: PTH122  Path.stem drops undecodable names no differently
    yield folder / name
    for number in range(2, 100_000):
        yield folder / f"{stem} ({number}){ending}"


def _move(image: Path, place: Path) -> None:
    """Move a file; raises FileExistsError, whatever races, rather than replace another."""
    if image.is_symlink():
        place.symlink_to(image.resolve())
    else:
        try:
            os.link(image, place)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            _copy(image, place)
    image.unlink()


def _copy(image: Path, place: Path) -> None:
    with image.open("rb") as source, place.open("xb") as target:
        try:
            shutil.copyfileobj(source, target)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    shutil.copystat(image, place)
