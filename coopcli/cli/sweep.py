"""`coop sweep`: methods over shots, seeds and variants, as a table, files and the paper's figure."""

from __future__ import annotations

import re
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from ..choices import Position, RecipeName
from ..learning.methods import METHODS
from . import options
from .config import settings_of, typed
from .console import Bars, line, print_json, progress, relative, say, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..experiments.grid import Result
    from ..experiments.summary import SummaryRow

T = TypeVar("T")
AXES_PANEL = "Axes"
PATIENCE = 10  # seconds that another process may need to begin in the same folder
AXES = {
    "methods",
    "shots",
    "seeds",
    "model",
    "context-length",
    "position",
    "csc",
    "init",
    "recipe",
    "keep-close",
}  # a grid may grow by these
YesNo = {"no": False, "yes": True}


def _axis(text: str, read: Callable[[str], T], option: str) -> list[T]:
    """Read the values between commas, each once; raises BadParameter for an unreadable value."""
    words = [word.strip() for word in text.split(",")]
    try:
        return list(dict.fromkeys(read(word) for word in words))
    except (ValueError, KeyError) as error:
        among = f' (of "{text}")' if len(words) > 1 else ""
        raise typer.BadParameter(f"{error.args[0] if error.args else error}{among}", param_hint=option) from error


def _count(word: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", word) or int(word) < 1:
        raise ValueError(f'"{word}" is not a number from 1 to 999999')
    return int(word)


def _weight(word: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", word):
        raise ValueError(f'"{word}" is not a number from 0 to 999999')
    return float(word)


def _words(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("holds no word", param_hint="--init")
    return text


def _seed(word: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", word):
        raise ValueError(f'"{word}" is not a seed: a number of 18 digits at most')
    return int(word)


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def read(word: str) -> str:
        if word not in known:
            raise ValueError(f'unknown value "{word}"; choose among {", ".join(known)}')
        return word

    return read


def sweep(
    context: typer.Context,
    data: options.DataArgument = ".",
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="A,B,...", help="Models, as for `coop fit`.")
    ] = options.DEFAULT_MODEL,
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="A,B,...", help=f"{', '.join(METHODS)}."),
    ] = "zeroshot,ensemble,linear-probe,coop",
    shots: Annotated[
        str,
        typer.Option("--shots", "-n", metavar="N,N,...", help="Train images per class, or `all`."),
    ] = "1,2,4,8,16",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="N,N,...", help="Each draws its images.")
    ] = "1,2,3",
    normalize: Annotated[
        bool,
        typer.Option("--normalize/--no-normalize",
                     help="Whether the linear probe reads normalised image features; the reference's does not."),
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", show_default="coop-runs/sweep-...",
                     help="Folder of the sweep."),
    ] = None,
    context_length: Annotated[
        str | None,
        typer.Option("--context-length", metavar="M,M,...", show_default="16, or the tokens of --init",
                     help="Context lengths of `coop`.", rich_help_panel=AXES_PANEL),
    ] = None,
    position: Annotated[
        str, typer.Option("--position", metavar="P,P,...", help="end, middle, front.", rich_help_panel=AXES_PANEL)
    ] = "end",
    csc: Annotated[
        str, typer.Option("--csc", metavar="no,yes", help="Class-specific contexts, or not.", rich_help_panel=AXES_PANEL)
    ] = "no",
    init: Annotated[
        list[str] | None,
        typer.Option("--init", metavar="WORDS", show_default="random", rich_help_panel=AXES_PANEL,
                     help='Words to start from; repeatable; "random" for a random context.'),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="R,R", help="paper, fast.", rich_help_panel=AXES_PANEL)
    ] = "paper",
    keep_close: Annotated[
        str,
        typer.Option("--keep-close", metavar="W,W,...", rich_help_panel=AXES_PANEL,
                     help="Weights that keep the class features of `coop` close to those of --template (KgCoOp: 8)."),
    ] = "0",
    classes: options.ClassesOption = "all",
    template: Annotated[
        str,
        typer.Option("--template", metavar="TEXT|NAME", callback=options.use_template,
                     help="The hand-written prompt; or a data set of the paper (eurosat), whose it takes."),
    ] = "a photo of a {}.",
    templates: Annotated[
        str, typer.Option("--templates", metavar="NAME|FILE", help="The templates of `ensemble`.")
    ] = "imagenet",
    views: Annotated[
        str,
        typer.Option("--views", metavar="N|online",
                     help="Augmented views encoded of each train image; online: new ones in every epoch of `coop`."),
    ] = "16",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Do all experiments anew, or with other settings.", rich_help_panel=options.OUTPUT),
    ] = False,
    plot: options.PlotOption = True,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    exif: options.ExifOption = False,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, show_default="as many as pay", rich_help_panel=options.MACHINE,
                     help="Experiments at a time, each in a process of its own."),
    ] = None,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    config: options.ConfigOption = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Run a grid of experiments: methods over shots, seeds and variants, and draw the paper's figure.

    Each experiment is kept when it is done: run the same command to resume a stopped grid; a larger grid in the same folder
    does only what is new. In several shells, or tasks of a job array, with one --output, the same command shares the
    experiments out. With `--classes base`, methods learn on the base classes and are tested on both halves.
    """
    from ..clip.cache import default_cache_folder
    from ..clip.templates import read_templates
    from ..errors import CoopError
    from ..experiments.folder_lock import locked
    from ..experiments.grid import Grid, Plan, Variant
    from ..experiments.run_folder import begin_run, check_run
    from ..experiments.summary import summary
    from ..experiments.sweep import sweep as run_sweep
    from ..experiments.sweep_folder import remove_sweep, write_results
    from ..machine import keep_freed_memory
    from ..parallel import after_first, launched
    from .setup import Source, can_draw, fitting_views

    keep_freed_memory()
    variants = [
        Variant(*axes)  # type: ignore[arg-type]
        for axes in product(
            _axis(context_length, _count, "--context-length") if context_length else [None],
            _axis(position, _one_of(get_args(Position)), "--position"),
            _axis(csc, lambda word: YesNo[_one_of([*YesNo])(word)], "--csc"),
            [None if words == "random" else _words(words) for words in init or ["random"]],
            _axis(recipe, _one_of(get_args(RecipeName)), "--recipe"),
            _axis(keep_close, _weight, "--keep-close"),
        )
    ]
    grid = Grid(
        methods=_axis(methods, _one_of([*METHODS]), "--methods"),
        models=_axis(model, str, "--model"),
        shots=_axis(shots, lambda word: None if word == "all" else _count(word), "--shots"),
        seeds=_axis(seeds, _seed, "--seeds"),
        variants=variants,
    )
    n_views = options.read_views(views)
    plan = Plan(template, tuple(read_templates(templates)), classes, device, dtype, pickles, n_views, exif, normalize)
    source = typed(Source, context)
    plot = plot and can_draw()
    for method in grid.methods:
        METHODS[method].check_package()
    dataset = source.load()
    plan = replace(plan, views=(n_views := fitting_views(context, dataset, n_views)))
    of_half = "" if classes == "all" else f"-{classes}"
    folder = output or Path(options.RUNS_FOLDER) / f"sweep-{Path(dataset.name).name}{of_half}"
    settings = settings_of(context) | {"views": n_views or "online"}

    def begin() -> None:
        with locked(folder, PATIENCE):
            again = overwrite and not launched().rank
            check_run(folder, settings, again, free=AXES)
            if again:
                remove_sweep(folder)
            begin_run(folder, settings, "sweep")

    after_first(begin)
    cells = grid.cells()
    kept_in = tempfile.TemporaryDirectory() if no_cache else nullcontext(default_cache_folder())
    with progress() as live, kept_in as cache_folder:
        bars = Bars(live)
        count = bars.counter("experiments")
        done: list[Result] = []

        def on_result(result: Result) -> None:
            done.append(result)
            count(len(done), len(cells))

        results = run_sweep(dataset, source.read, plan, cells, folder, Path(cache_folder), jobs, bars.update, on_result)
    if launched().rank:  # of many processes the first alone writes the results of all
        return
    written = write_results(folder, dataset.name, settings, results, plot)
    if json:
        print_json({"command": "sweep", **written})
    else:
        show(dataset.name, summary(results))
    for result in results:
        if result.note:
            say(f"note: {result.cell.folder}: {result.note}")
    say(f"results: {relative(folder / 'results.csv')}")
    if all(result.top1 is None for result in results):
        raise CoopError("no experiment gave a result; the notes say why")


def show(title: str, lines: Sequence[SummaryRow]) -> None:
    """Print mean and spread over the seeds, a row for each method and variant, a column for each number of shots; and costs."""
    from ..experiments.summary import VALUES, costs_of, table_of

    for value, heading in VALUES.items():
        if any(getattr(row, value) for row in lines):
            line(f"{title}: {heading}, mean and standard deviation over seeds", "bold")
            headings, *rows = table_of(lines, value)
            table(headings, rows)
    if len(costs := costs_of(lines)) > 1:
        line()
        line("What each learns, at the most shots; mean seconds, features in the cache", "bold")
        headings, *rows = costs
        table(headings, rows, left=(0, 2), fold=(2,))
