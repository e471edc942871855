"""`coop fit`: learn a prompt from a few labelled images.

Longer than most modules: half of it declares the options, of which this command has the most.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..choices import Classes, Position, RecipeName
from ..files import PROMPT_FILE
from . import options
from .config import settings_of, typed
from .console import Bars, line, percent, print_json, progress, relative, say, table

if TYPE_CHECKING:
    from ..data.load import DataSet
    from ..experiments.run_folder import Run
    from ..learned.prompt import LearnedPrompt
    from ..learned.scores import Evaluation
    from ..learning.fit import Fit
    from ..learning.training import EpochLog

CONTEXT, RECIPE = "Context", "Recipe"


def fit(
    context: typer.Context,
    data: options.DataArgument = ".",
    model: options.ModelOption = options.DEFAULT_MODEL,
    shots: Annotated[
        str, typer.Option("--shots", "-n", metavar="N|all", help="Train images per class: 1, 2, 4, 8, 16, ...")
    ] = "16",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", show_default="coop-runs/...",
                     help="Run folder to write."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is in the folder.", rich_help_panel=options.OUTPUT)
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the images, the first context and the batches.")] = 1,
    context_length: Annotated[
        int | None,
        typer.Option("--context-length", min=1, max=1000, rich_help_panel=CONTEXT, show_default="16, or the tokens of --init",
                     help="M, the number of learned vectors."),
    ] = None,
    position: Annotated[
        Position, typer.Option("--position", help="Where the class name stands.", rich_help_panel=CONTEXT)
    ] = "end",
    csc: Annotated[
        bool, typer.Option("--csc/--no-csc", help="One context for each class (class-specific).", rich_help_panel=CONTEXT)
    ] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="WORDS", rich_help_panel=CONTEXT, show_default="random",
                     help='Start from words, e.g. "a photo of a".'),
    ] = None,
    reference_init: Annotated[
        Path | None,
        typer.Option("--reference-init", metavar="FILE", rich_help_panel=CONTEXT,
                     help="Start from the context in a safetensors file or in a checkpoint of the reference."),
    ] = None,
    template: Annotated[
        str,
        typer.Option("--template", metavar="TEXT|NAME", callback=options.use_template,
                     help="The hand-written prompt to compare with; or a data set of the paper (eurosat), whose it takes."),
    ] = "a photo of a {}.",
    recipe: Annotated[
        RecipeName,
        typer.Option("--recipe", rich_help_panel=RECIPE,
                     help="The paper's, or fast: 200 steps of Adam over all images. The next options change parts of it."),
    ] = "paper",
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, rich_help_panel=RECIPE,
                     help="Passes over the images. Paper: 50 for 1 shot, 100 up to 4, else 200; 50 for ImageNet. Fast: 200."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", min=0, help="Learning rate. Paper: 0.002. Fast: 0.01.", rich_help_panel=RECIPE)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=0, help="Images a step, 0 for all. Paper: 32. Fast: 0.", rich_help_panel=RECIPE),
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option("--warmup-epochs", min=0, help="Epochs at the warm-up rate. Paper: 1. Fast: 40.", rich_help_panel=RECIPE),
    ] = None,
    warmup_lr: Annotated[
        float | None,
        typer.Option("--warmup-lr", min=0, rich_help_panel=RECIPE,
                     help="The warm-up rate. Paper: 1e-5. Fast: a ramp to --lr."),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option("--momentum", min=0, max=1, help="SGD's momentum, Adam's first beta. Both: 0.9.", rich_help_panel=RECIPE),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", min=0, help="On the context. Paper: 5e-4. Fast: 0.", rich_help_panel=RECIPE),
    ] = None,
    views: Annotated[
        str,
        typer.Option("--views", metavar="N|online", rich_help_panel=RECIPE,
                     help="Augmented views (random resized crop, flip) to encode of each image; each epoch draws one of them; "
                          "online: encode new ones in every epoch, as the reference does."),
    ] = "16",
    keep_close: Annotated[
        float | None,
        typer.Option("--keep-close", metavar="WEIGHT", min=0, rich_help_panel=RECIPE, show_default="0",
                     help="Keep the class features close to those of --template (KgCoOp; its weight is 8): new classes gain."),
    ] = None,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    exif: options.ExifOption = False,
    on_error: options.OnErrorOption = "fail",
    classes: options.ClassesOption = "all",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "float32",
    class_chunk: Annotated[
        int | None,
        typer.Option("--class-chunk", metavar="N", min=0, rich_help_panel=options.MACHINE,
                     show_default="by the number of classes",
                     help="Encode N classes at a time, 0: all. Fewer need less memory; the last bits of the result change."),
    ] = None,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", rich_help_panel=options.OUTPUT,
                     help="Write curves into the run folder, for `tensorboard --logdir coop-runs`."),
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option("--wandb", metavar="PROJECT", rich_help_panel=options.OUTPUT,
                     help="Send curves to a project of wandb, or of trackio where that is installed instead."),
    ] = None,
    plot: options.PlotOption = False,
    config: options.ConfigOption = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Learn a prompt from a few labelled images per class.

    CLIP stays frozen; only the context learns. The result is compared with a hand-written prompt on the test split, or
    on the images that were not trained on, and written to a run folder.
    """
    wanted_shots, wanted_views = options.read_count(shots, "all", "--shots"), options.read_views(views)

    from ..clip.prompts import ContextSettings, tokenize
    from ..data.fewshot import draw_few_shot, half
    from ..errors import UsageError
    from ..experiments.contents import data_digest
    from ..experiments.draw import draw_run
    from ..experiments.folder_lock import locked
    from ..experiments.plots import check_matplotlib
    from ..experiments.run_folder import IMAGES_DIGEST, append_epoch, begin_run, check_run, kept_run, write_run
    from ..experiments.trackers import epoch_numbers, final_numbers, tracked
    from ..files import checkpoint_of
    from ..learned.reference import read_initial_context
    from ..learning.fit import Watch
    from ..learning.fit import fit as fit_prompt
    from ..learning.recipe import fast_recipe, paper_recipe
    from ..machine import keep_freed_memory
    from ..parallel import first_goes_on, share, world
    from ..settings import RESOLVED
    from .setup import Source, fitting_views, open_backbone, open_cache

    keep_freed_memory()
    if init is not None and reference_init is not None:
        raise UsageError("--init and --reference-init both say where to start; choose one")
    dataset = typed(Source, context).load()
    wanted_views = fitting_views(context, dataset, wanted_views)
    n_classes = len(half(dataset, classes).class_names)
    wanted: dict[str, Any] = {
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "warmup_epochs": warmup_epochs, "warmup_lr": warmup_lr,
        "momentum": momentum, "weight_decay": weight_decay, "views": wanted_views, "keep_close": keep_close,
    }  # fmt: skip
    chosen = fast_recipe() if recipe == "fast" else paper_recipe(wanted_shots, n_classes)
    chosen = replace(chosen, **{key: value for key, value in wanted.items() if value is not None})
    folder = output or default_folder(dataset, model, shots, seed, position, csc, classes)
    check_writable(folder)  # now, not after an hour of training
    cache = open_cache(no_cache)
    backbone = open_backbone(model, revision, device, dtype, pickles, cache).with_exif(exif)
    length = context_length or (len(tokenize(backbone.tokenizer, init)) if init else 16)
    settings = ContextSettings(length, position, csc)
    start = (
        init
        if reference_init is None
        else read_initial_context(reference_init, settings, n_classes, backbone.text_encoder.width)
    )
    drawn = draw_few_shot(dataset, wanted_shots, seed, classes)
    resolved = settings_of(context) | {
        "shots": wanted_shots or "all", "revision": backbone.revision or revision, "context-length": settings.n_ctx,
        "epochs": chosen.epochs, "lr": chosen.lr, "batch-size": chosen.batch_size, "warmup-epochs": chosen.warmup_epochs,
        "warmup-lr": chosen.warmup_lr, "momentum": chosen.momentum, "weight-decay": chosen.weight_decay,
        "views": chosen.views or "online", "keep-close": chosen.keep_close, "device": backbone.device.type,
        RESOLVED: {
            "fingerprint": backbone.fingerprint, "optimizer": chosen.optimizer,
            "reference-init-sha256": reference_init and hashlib.sha256(reference_init.read_bytes()).hexdigest(),
        },
    }  # fmt: skip
    if plot:
        check_matplotlib()
    first, kept = world().rank == 0, None
    if first:  # of many processes, the one that writes
        resolved[RESOLVED][IMAGES_DIGEST] = data_digest(drawn)
        context.with_resource(locked(folder))
        check_run(folder, resolved, overwrite)
        kept = None if overwrite else kept_run(folder)
    if share(kept is not None) and not first_goes_on():
        return
    if kept:
        say(f"note: done already, on {kept.finished}; --overwrite trains again")
        run: Run | Fit = kept
    else:
        vectors, where = f"{settings.n_ctx} context vectors", f"{backbone.name} on {backbone.device.type}"
        task = f"learn from {len(drawn.train)} images, test on {len(drawn.test)}"
        say(f"run: {relative(folder)}: {task}; {vectors}, {chosen.epochs} epochs, {where}")
        with progress() as live, tracked(folder, resolved, tensorboard and first, wandb if first else None) as record:
            bars = Bars(live)

            def on_epoch(log: EpochLog) -> None:
                bars.epoch(log)
                append_epoch(folder, log)
                record(epoch_numbers(log), log.epoch)

            def on_training() -> None:
                begin_run(folder, resolved)

            watch = Watch(bars.update, on_training, on_epoch, bars.training_step) if first else Watch()
            run = fit_prompt(
                backbone, dataset, chosen, settings, wanted_shots, seed, start, template, classes, cache, class_chunk, watch,
                checkpoint_of(folder), on_error,
            )  # fmt: skip
            record(final_numbers(run), len(run.log))
        if not first_goes_on():
            return
        write_run(folder, run, resolved)
    figures = []
    if plot:
        figures = draw_run(folder, run, backbone, template, cache, drawn.test)
    outcome = _outcome(run)
    if json:
        written = {"prompt": str(folder / PROMPT_FILE), "figures": [str(relative(path)) for path in figures]}
        print_json({"command": "fit", "data": dataset.name, **written, **outcome.as_dict()})
    else:
        show(outcome, dataset.name, template)
        say("   ".join(f"{step} {value:.1f} s" for step, value in outcome.seconds.items()))
        if figures:
            say(f"figures: {', '.join(str(relative(path)) for path in figures)}")
        say(f"prompt: {relative(folder / PROMPT_FILE)}\nnext: coop predict {shlex.quote(str(relative(folder)))} IMAGE")


def default_folder(
    dataset: DataSet, model: str, shots: str, seed: int, position: Position, csc: bool, classes: Classes
) -> Path:
    """Name the default run folder: `coop-runs/<data>-<model>-<variant>-<shots>shots-seed<seed>`."""
    from ..names import short_name

    variant = "-".join([position, *["csc"] * csc, *[classes] * (classes != "all")])
    return Path(options.RUNS_FOLDER) / f"{Path(dataset.name).name}-{short_name(model)}-{variant}-{shots}shots-seed{seed}"


def check_writable(folder: Path) -> None:
    """Check that the run folder can be made and written; raises UsageError otherwise."""
    from ..errors import UsageError

    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f'--output "{folder}" cannot be written: "{nearest}" is not a folder that you may write to')


@dataclass(frozen=True)
class Outcome:
    """What a run gave, whether it was trained now or `kept` in its folder."""

    prompt: LearnedPrompt
    learned: Evaluation | None
    hand_written: Evaluation | None
    skipped: int
    final_loss: float
    seconds: dict[str, float]
    kept: bool

    def as_dict(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        return {
            "model": self.prompt.model,
            "train_images": self.prompt.training.get("images"),
            "skipped": self.skipped,
            "learned": self.learned and self.learned.as_dict(),
            "hand_written": self.hand_written and self.hand_written.as_dict(),
            "final_loss": self.final_loss,
            "seconds": self.seconds,
            "kept": self.kept,
        }


def _outcome(run: Fit | Run) -> Outcome:
    from ..experiments.run_folder import Run

    if isinstance(run, Run):
        skipped, seconds = int(run.about.get("skipped", 0)), run.about.get("seconds", {})
        return Outcome(run.prompt, run.learned, run.hand_written, skipped, run.log[-1].loss, seconds, kept=True)
    return Outcome(run.prompt, run.test, run.hand_written, run.skipped, run.log[-1].loss, run.seconds, kept=False)


def show(outcome: Outcome, data: str, template: str) -> None:
    """Print the accuracy beside the hand-written prompt's, and the gain; say where to look when there is none."""
    if outcome.learned is None or outcome.hand_written is None:
        line(f"learned from {outcome.prompt.training.get('images')} images of {len(outcome.prompt.class_names)} classes")
        return
    learned, hand_written = outcome.learned.metrics, outcome.hand_written.metrics
    rows = [
        (name, percent(metrics.top1), percent(metrics.macro))
        for name, metrics in ((f'hand-written "{template}"', hand_written), ("learned prompt", learned))
    ]
    gains = (learned.top1 - hand_written.top1, learned.macro - hand_written.macro)
    rows.append(("gain", f"{100 * gains[0]:+.1f}", f"{100 * gains[1]:+.1f}"))
    table((f"{data}, {learned.n} test images", "top-1 %", "macro %"), rows)
    if gains[0] < 0:
        say("note: the learned prompt does worse than the hand-written one; docs/choosing.md says what helps")
