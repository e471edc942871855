"""`coop transfer`: learned prompts on other data sets, as a matrix."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import Bars, line, print_json, progress, relative, say, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..clip.backbone import Backbone
    from ..experiments.summary import Spread


def _each(given: list[str] | None, n: int, option: str, default: str | None) -> Sequence[str | None]:
    """Give each of n data sets its value; a value given once counts for all."""
    if not given:
        return [default] * n
    if len(given) not in (1, n):
        raise typer.BadParameter(f"given {len(given)} times for {n} data sets; once or for each", param_hint=option)
    return given * (n if len(given) == 1 else 1)


def transfer(
    prompts_and_data: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT... DATA...",
                       help="Prompt files, head files, run folders or USER/NAME[@REVISION] on the hub; then data sets as for "
                            "`coop eval`."),
    ],
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEXT|NAME", show_default="a photo of a {}.", callback=options.use_template,
                     help="The hand-written prompt beside; once, or once for each DATA."),
    ] = None,
    templates: Annotated[
        str, typer.Option("--templates", metavar="NAME|FILE", help="The templates of the ensemble beside.")
    ] = "imagenet",
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="ROOT", rich_help_panel=options.IMAGES, show_default=False,
                     help="Folder that a split file's paths start from; once, or once for each DATA."),
    ] = None,
    classnames: Annotated[
        list[str] | None,
        typer.Option("--classnames", metavar="FILE", rich_help_panel=options.IMAGES, show_default=False,
                     help="Names for the classes, as for `coop eval`; once, or once for each DATA."),
    ] = None,
    exif: options.SameExifOption = None,
    model: options.SameModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", show_default="coop-runs/transfer-...",
                     help="Folder to write the matrix to.", rich_help_panel=options.OUTPUT),
    ] = None,
    plot: options.PlotOption = True,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Test learned prompts on other data sets (domain generalisation): a matrix of prompts and data.

    Prompts that differ in their seed only are one row, with mean and deviation; beside them stand the hand-written prompt
    and the ensemble. A data set may hold a part of the classes, or others unless the context is class-specific.
    """
    from ..clip.templates import DEFAULT_TEMPLATE, read_templates
    from ..data.load import describe, load_data, takes_root
    from ..errors import UsageError
    from ..experiments.run_folder import provenance
    from ..experiments.transfer import Target, draw, matrix
    from ..experiments.transfer import transfer as run_transfer
    from ..files import csv_of, write_atomically, write_json
    from ..learned.head import Head
    from ..learned.prompt import LearnedPrompt, load_learned
    from ..machine import pick_device
    from ..parallel import first_goes_on
    from .setup import can_draw, open_backbone, open_cache

    last = prompts_and_data[-1]  # a data set, whatever it is called
    prompts = {word: _prompt(word, word != last) for word in prompts_and_data}
    files = {word: path for word, path in prompts.items() if path}
    data = [word for word in prompts if word not in files]
    if not files or not data:
        what = "prompt" if not files else "data set"
        raise UsageError(f"coop transfer takes prompts and data sets; there is no {what} among: {', '.join(prompts_and_data)}")
    plot = plot and can_draw()
    learned = [(Path(word), load_learned(path)) for word, path in files.items()]
    if exif is not None:
        learned = [(path, replace(prompt, exif=exif)) for path, prompt in learned]
    roots = _each(images, len(data), "--images", None)
    wordings = _each(template, len(data), "--template", DEFAULT_TEMPLATE)
    namings = _each(classnames, len(data), "--classnames", None)
    targets = []
    for word, root, naming, wording in zip(data, roots, namings, wordings, strict=True):
        dataset = load_data(word, _path(root) if takes_root(word) else None, _path(naming))
        say(f"data: {describe(dataset)}")
        targets.append(Target(dataset, str(wording), naming is not None))

    cache = open_cache(no_cache)

    def backbone_of(prompt: LearnedPrompt | Head) -> Backbone:
        return open_backbone(model or prompt.model, None if model else prompt.revision, device, dtype, pickles, cache)

    with progress() as live:
        bars = Bars(live)
        rows = run_transfer(learned, targets, backbone_of, read_templates(templates), cache, bars.update)
    if not first_goes_on():  # of many processes one writes
        return
    spreads = matrix(rows)
    first = learned[0][1].training.get("data", "prompts")
    folder = output or Path(options.RUNS_FOLDER) / re.sub(r"[^\w.-]+", "-", f"transfer-{first}")
    content = {**provenance(pick_device(device)), "command": "transfer", "results": [asdict(row) for row in rows]}
    write_atomically(folder / "transfer.csv", csv_of(asdict(row) for row in rows).encode())
    write_json(folder / "transfer.json", content)
    if plot:
        draw(folder / "transfer", spreads)
    if json:
        print_json(content)
    else:
        show(spreads)
    for row in rows:
        if row.note:
            say(f"note: {row.file} on {row.dataset}: {row.note}")
    say(f"results: {relative(folder / 'transfer.csv')}")


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _prompt(word: str, explain: bool) -> Path | None:
    """Find the prompt that a word names, here or on the hub; None for a word that names a data set.

    `user/name` may be either on the hub: it is a prompt where a model repository of that name holds one. With `explain`, a
    near miss of a run here raises UsageError.
    """
    from ..errors import CoopError, UsageError
    from .finding import check_prompt, holds_prompt
    from .setup import find_prompt

    path = Path(word)
    if holds_prompt(path):
        return path
    if explain:
        check_prompt(word)
    if path.suffix == ".safetensors":
        return path
    try:
        fetched = find_prompt(word)
    except CoopError as error:
        if "@" in word:  # only prompts have a revision
            raise
        if not isinstance(error, UsageError):  # the hub may have it but did not answer
            say(f"note: {error}; taken for a data set")
        return None
    return None if fetched == path else fetched


def show(spreads: dict[str, dict[str, Spread | None]]) -> None:
    """Print a row for each prompt and a column for each data set."""
    line("top-1 %, mean and standard deviation over seeds", "bold")
    columns = list(next(iter(spreads.values())))
    rows = [(source, *(str(by_data.get(name) or "-") for name in columns)) for source, by_data in spreads.items()]
    table(("prompt", *columns), rows)
