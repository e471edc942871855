"""Settings files: the options of a command as TOML, read by --config and written into the run folder."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import read_text

RESOLVED = "resolved"  # the table of values that are not options; --config skips it


def read_settings(path: Path) -> dict[str, Any]:
    """Read a settings file. Raises UsageError for a file that is missing or not TOML."""
    try:
        return tomllib.loads(read_text(path, "settings file", UsageError))
    except (ValueError, RecursionError) as error:
        raise UsageError(f'settings file "{path}" is not valid TOML: {error}') from error


def to_toml(settings: Mapping[str, Any]) -> str:
    """Format settings as TOML: texts, paths, booleans, numbers, lists of these, and tables (mappings) of all of these.

    None is left out: TOML has no word for it, and a command uses its default for a missing key.
    Raises UsageError for a text with lone surrogates, as a path may have: TOML cannot hold it.
    """
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    outside = {key: value for key, value in settings.items() if key not in tables}
    return "\n".join([_entries(outside), *(f"[{_key(key)}]\n{_entries(table)}" for key, table in tables.items())])


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the differences between two settings as `key: before -> after`; entries of tables count as top-level keys."""
    old, new = _flat(before), _flat(after)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in tomllib.loads(to_toml(settings)).items():  # as they come back from a file
        entries |= value if isinstance(value, dict) else {key: value}
    return entries


def _entries(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if value is not None)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    text = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes, and one that it lacks
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} is not valid Unicode, so no settings file can hold it; rename it") from error
    return text
