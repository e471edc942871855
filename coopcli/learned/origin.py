"""What prompts and heads have in common: the classes, the model, and how they were learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import CoopError
from .safefile import MAX_NAME, Checks, Contents, brief, is_names, is_text

NAMED = 3  # classes that a repr names


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What was learned, for which classes and on which model.

    `class_names` enter prompts, `folders` are the data's own names of the classes. `model` and `revision` name the
    backbone and `fingerprint` identifies it. `training` describes recipe, data and versions for the reader. With `exif`,
    it was learned from images turned by their EXIF orientation, and is used on such.
    """

    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    model: str
    revision: str | None
    fingerprint: str
    training: dict[str, Any]
    exif: bool = False

    def __str__(self) -> str:
        """The classes and the model in words."""
        first = ", ".join(brief(name) for name in self.class_names[:NAMED])
        more = ", ..." if len(self.class_names) > NAMED else ""
        return f"{len(self.class_names)} classes ({first}{more}) on {brief(self.model)}"

    def check_lengths(self) -> None:
        """Raise CoopError for a name that is too long for a file."""
        named = {"class name": self.class_names, "class folder": self.folders, "model name": (self.model,)}
        for what, names in named.items():
            for name in names:
                if len(name) > MAX_NAME:
                    raise CoopError(
                        f'the {what} "{brief(name[:40])}..." has {len(name)} characters; shorten it to {MAX_NAME} or fewer, '
                        "which is what a file of coop can hold"
                    )


ORIGIN_CHECKS: Checks = {
    "format_version": lambda entry: type(entry) is int and entry >= 1,
    "class_names": is_names,
    "folders": is_names,
    "model": is_text,
    "revision": lambda entry: entry is None or (is_text(entry) and ".." not in entry),  # it becomes part of a path
    "fingerprint": is_text,
    "training": lambda entry: type(entry) is dict,
}
EXIF = "exif"  # in the header of what was learned from turned images


def exif_entry(origin: Origin) -> dict[str, bool]:
    """The entry of a header: none where orientation is ignored, as in the files of coop before it could turn images."""
    return {EXIF: True} if origin.exif else {}


def origin_of(contents: Contents) -> Origin:
    """Read these fields from a header that ORIGIN_CHECKS has passed. Raises CoopError unless names match folders."""
    entry = contents.entry
    contents.check({EXIF: lambda entry: type(entry) is bool} if EXIF in entry else {})
    if len(entry["class_names"]) != len(entry["folders"]):
        names, folders = len(entry["class_names"]), len(entry["folders"])
        raise CoopError(f'"{contents.path}" names {names} classes and {folders} folders of them')
    return Origin(
        class_names=tuple(entry["class_names"]),
        folders=tuple(entry["folders"]),
        model=entry["model"],
        revision=entry["revision"],
        fingerprint=entry["fingerprint"],
        training=entry["training"],
        exif=entry.get(EXIF, False),
    )
