"""The prompt or run that a word names: near misses, runs that are not done, PROMPT and DATA in the wrong order."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from ..errors import UsageError
from ..files import HEAD_FILE, PROMPT_FILE, RESULTS_FILE, RUNS_FOLDER, SETTINGS_FILE


def holds_prompt(path: Path) -> bool:
    """Say whether a path is a prompt or head file, or a folder with one."""
    if path.is_dir():
        return any((path / name).is_file() for name in (PROMPT_FILE, HEAD_FILE))
    return path.suffix == ".safetensors" and path.is_file()


def is_run(path: Path) -> bool:
    """Say whether a folder is that of a run or sweep, done or not."""
    return path.is_dir() and (holds_prompt(path) or (path / SETTINGS_FILE).is_file())


def check_prompt(word: str, others: Sequence[str] = ()) -> None:
    """Explain a word that does not lead to a prompt on this machine; `others` are the command's further arguments.

    Raises UsageError for swapped arguments, for a run that is not done, and for a near miss of a run here. What may be on
    the hub passes.
    """
    path = Path(word)
    if holds_prompt(path):
        return
    if path.exists():
        if swapped := next((other for other in others if holds_prompt(Path(other))), None):
            raise UsageError(f'"{swapped}" is a learned prompt and "{word}" is not; give the prompt first, then the images')
        if (path / SETTINGS_FILE).is_file() and not (path / RESULTS_FILE).is_file():
            _refuse_unfinished(path)
    elif near := _near_misses(path):
        raise UsageError(f'there is no "{word}"; did you mean {" or ".join(near)}?')


def _refuse_unfinished(path: Path) -> None:
    from ..experiments.listing import list_runs

    rows = [row for row in list_runs(path) if Path(row.folder) == path]
    if rows and rows[0].command == "sweep":
        raise UsageError(f'"{path}" is not done ({rows[0].state}); run the same sweep again to resume it')
    if rows:
        folder = shlex.quote(str(path))
        raise UsageError(
            f'"{path}" is not done ({rows[0].state}); resume it: coop fit --config {folder}/{SETTINGS_FILE} -o {folder}'
        )


def _near_misses(path: Path) -> list[str]:
    """Runs on this machine whose names are close to that of a path that is missing, the closest first."""
    if path.suffix == ".safetensors" and not path.parent.exists():
        path = path.parent
    runs = {str(run): run.name for run in _runs_beside(path)}
    names = get_close_matches(path.name, runs.values(), n=3, cutoff=0.75)
    return [run for name in dict.fromkeys(names) for run, its_name in runs.items() if its_name == name][:3]


def _runs_beside(path: Path) -> Iterator[Path]:
    """Runs in the folder that a path is in, in coop-runs for a bare name, or in a folder of a similar name."""
    parents = [path.parent] if path.parent.is_dir() else []
    if path.parent == Path():
        parents.append(Path(RUNS_FOLDER))
    elif not parents and path.parent.parent.is_dir():
        siblings = {folder.name: folder for folder in path.parent.parent.iterdir() if folder.is_dir()}
        parents = [siblings[name] for name in get_close_matches(path.parent.name, siblings, n=1, cutoff=0.8)]
    for parent in parents:
        if parent.is_dir():
            yield from (child for child in sorted(parent.iterdir()) if is_run(child))
