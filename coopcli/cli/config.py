"""`--config`: a settings file says what the command line does not."""

from __future__ import annotations

import json
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import typer

from ..errors import UsageError
from ..settings import RESOLVED, read_settings
from .console import say, shortened

# These say where results go and how they are shown; whatever they are, the results are the same.
PRESENTATION = {"output", "overwrite", "no-cache", "jobs", "tensorboard", "wandb", "plot", "config", "quiet", "verbose", "json"}
LONGEST = 200  # characters of a value that a message repeats
T = TypeVar("T")


def settings_of(context: typer.Context) -> dict[str, Any]:
    """Name every option and argument that the command's results depend on, with its value: what settings.toml holds.

    Paths are texts, as in the files that settings are written to.
    """
    keys = {key_of(parameter): parameter.name for parameter in context.command.params}
    values = {key: context.params.get(name) for key, name in keys.items() if key not in PRESENTATION}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def typed(settings: type[T], context: typer.Context) -> T:
    """Fill a dataclass with the command's parameters of the same names."""
    hints = get_type_hints(settings)

    def value_of(name: str) -> Any:
        value = context.params[name]
        # Before 0.29, typer makes paths of texts only when it calls the command.
        return Path(value) if isinstance(value, str) and Path in get_args(hints[name]) else value

    return settings(**{field.name: value_of(field.name) for field in fields(settings)})  # type: ignore[arg-type]


def use_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config: make what the file says the command's defaults, as if it had been typed.

    Keys are names of options and arguments, such as `context-length` and `data`; a note names any other, which has no effect.
    Raises UsageError for a file that cannot be read and for a value that its option does not take.
    """
    if path is None or context.resilient_parsing:
        return path
    parameters = {key_of(parameter): parameter for parameter in context.command.params if parameter.name != "config"}
    defaults: dict[str, Any] = {}
    for key, value in read_settings(path).items():
        if parameter := parameters.get(key):
            where = f'"{path}": {key} = {shortened(json.dumps(value, default=str, ensure_ascii=False), LONGEST)}'
            defaults[parameter.name] = typed = _as_typed(parameter, value, where)
            try:
                parameter.process_value(context, typed)
            except typer.BadParameter as error:
                raise UsageError(f"{where}: {shortened(error.message.removeprefix('Value error, '), LONGEST)}") from error
        elif key != RESOLVED:
            near = get_close_matches(key, parameters, n=1)
            guess = f'; did you mean "{near[0]}"?' if near else ""
            say(f'note: "{path}": unknown key "{key}" has no effect on this command{guess}')
    context.default_map = defaults
    return path


def key_of(parameter: Any) -> str:
    """Name a parameter as settings files do: an option without its hyphens, an argument by its name."""
    return str(max(parameter.opts, key=len)).removeprefix("--")


def _as_typed(parameter: Any, value: Any, where: str) -> Any:
    """Turn a value of a settings file into what would have been typed; numbers become texts, flags stay true or false."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise UsageError(f"{where}: must be true or false")
        return value
    if parameter.multiple and not isinstance(value, list):
        raise UsageError(f"{where}: must be a list [...]")
    if any(type(part) not in (str, int, float) for part in (value if parameter.multiple else [value])):
        raise UsageError(f"{where}: must be a text or a number")
    return list(map(str, value)) if parameter.multiple else str(value)
