"""`coop interpret`: what was learned, in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..choices import Metric
from . import options
from .console import LONG_TABLE, SHOWN_CLASSES, Bars, line, print_json, printable, progress, table

if TYPE_CHECKING:
    from ..learned.interpret import Gains, Lexicon, Reading


def interpret(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT...",
            help="Run folders of `coop fit`, files in them, or USER/NAME[@REVISION] on the hub. Several: side by side.",
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, show_default="5; 1 of several prompts", help="Tokens to show for each vector."),
    ] = None,
    metric: Annotated[
        Metric, typer.Option("--metric", help="By distance, or by direction alone: 1 - cosine similarity.")
    ] = "euclidean",
    words: Annotated[
        bool, typer.Option("--words/--pieces", help="Choose among whole words, or among all tokens: pieces and signs, too.")
    ] = True,
    moved: Annotated[
        bool,
        typer.Option("--moved", help="Also show which words the class features moved towards, from the hand-written ones."),
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", metavar="TEXT|NAME", show_default="a photo of a {}.", callback=options.use_template,
            help="For --moved: the hand-written prompt, of classes and words.",
        ),
    ] = None,
    model: options.SameModelOption = None,
    device: options.DeviceOption = "auto",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Show the words nearest to each learned vector, in the model's own token embedding.

    "Farther than" says what a nearest word is worth: the share of words that have another word nearer than the vector has
    its nearest. Near 100 % the vector is near to no word, and the words mean little. With --pieces, a trailing hyphen marks
    a token that does not end a word: "phot-" begins one, "photo" is whole or ends one.

    --moved encodes every word of the vocabulary in the hand-written prompt (minutes for CLIP on a CPU) and keeps the
    features in the cache. It shows the words whose similarity grew most: for all classes together, then for each class
    beyond what all have in common.

    With --json: `{"prompt", "model", "spacing": {"median", "tokens"}, "contexts": [{"class", "vectors": [[{"token",
    "token_id", "distance"}]], "farther_than": [share]}], "moved": {"all": [{"word", "gain"}], "classes": [{"class",
    "similarity", "towards": [{"word", "gain"}]}]}}`; of several prompts a list of these, `prompts`.
    """
    from ..clip.templates import DEFAULT_TEMPLATE
    from ..errors import UsageError
    from ..learned.applied import check_backbone
    from ..learned.interpret import lexicon_of, read_prompt
    from ..learned.prompt import load_prompt
    from .setup import find_prompt, open_backbone, open_cache

    if template is not None and not moved:
        raise UsageError("--template is the prompt that --moved starts from; give --moved, too")
    if moved and template is None:
        template = DEFAULT_TEMPLATE
    top = top or (1 if len(prompts) > 1 else 5)
    learned = [load_prompt(find_prompt(source)) for source in prompts]
    cache = open_cache(no_cache)

    @lru_cache
    def open_lexicon(name: str, revision: str | None) -> Lexicon:
        backbone = open_backbone(name, revision, device, "float32", pickles, cache)
        with progress() as live:
            return lexicon_of(backbone, metric, words, template, cache, Bars(live).counter("words"))

    readings: list[tuple[str, Reading]] = []
    for source, prompt in zip(prompts, learned, strict=True):
        lexicon = open_lexicon(model or prompt.model, None if model else prompt.revision)
        check_backbone(prompt, lexicon.backbone)
        shown = None if json or len(prompt.class_names) <= LONG_TABLE else SHOWN_CLASSES
        readings.append((source, read_prompt(prompt, lexicon, top, template, shown)))
    if json:
        objects = [_as_dict(*reading) for reading in readings]
        content = objects[0] if len(objects) == 1 else {"prompts": objects}
        print_json({"command": "interpret", "metric": metric, "words": words, **content})
    else:
        show(readings, "words" if words else "tokens")


def show(readings: Sequence[tuple[str, Reading]], kind: str) -> None:
    """Print each context as a table, a row for each vector: several prompts side by side. `kind` is words or tokens."""
    owners = dict.fromkeys(owner for _, reading in readings for owner in reading.near)
    for owner in owners:
        if owner is not None:
            line(owner, "bold")
        _show_contexts([(name, reading) for name, reading in readings if owner in reading.near], owner, kind)
    for median, model in {reading.spacing.median: reading.prompt.model for _, reading in readings}.items():
        line(
            f"farther than: the share of {model}'s {kind} that have a neighbour nearer than the vector has; half have one "
            f"within {median:.2f}. Near 100 %, the {kind} say little about the vector",
            "dim",
        )
    for name, reading in readings:
        if reading.movements:
            line()
            _show_movements(reading, name if len(readings) > 1 else None)
    by_class = (len(reading.prompt.class_names) for _, reading in readings if reading.movements or None not in reading.near)
    if (most := max(by_class, default=0)) > LONG_TABLE:
        line(f"the first {SHOWN_CLASSES} of {most:,} classes; --json gives all", "dim")


def _show_contexts(readings: Sequence[tuple[str, Reading]], owner: str | None, kind: str) -> None:
    headings = ["vector"]
    for name, _ in readings:
        whose = f"{printable(name)}\n" if len(readings) > 1 else ""
        headings += [f"{whose}nearest {kind} (distance)", "farther\nthan"]
    rows = []
    for row in range(max(len(reading.near[owner]) for _, reading in readings)):
        cells = [str(row + 1)]
        for _, reading in readings:
            vectors = reading.near[owner]
            if row < len(vectors):
                nearest = ", ".join(f"{token.token} ({token.distance:.2f})" for token in vectors[row])
                cells += [nearest, f"{100 * reading.farther_than(vectors[row]):.0f} %"]
            else:  # a shorter context
                cells += ["", ""]
        rows.append(cells)
    texts = range(1, len(headings), 2)
    table(headings, rows, left=texts, fold=texts)


def _show_movements(reading: Reading, name: str | None) -> None:
    if not reading.movements:
        return
    common, by_class = reading.movements
    if name:
        line(name, "bold")
    rows = [("all together", "", _gains(common))]
    for class_name, movement in zip(reading.prompt.class_names, by_class, strict=False):  # of the first classes
        rows.append((class_name, f"{movement.similarity:.3f}", _gains(movement.towards)))
    table(("class features", "similarity to hand-written", "moved towards (gain in similarity)"), rows, left=(0, 2), fold=(2,))


def _gains(gains: Gains) -> str:
    return ", ".join(f"{word} ({gain:+.2f})" for word, gain in gains) or "no word"


def _as_dict(name: str, reading: Reading) -> dict[str, Any]:
    content: dict[str, Any] = {
        "prompt": name,
        "model": reading.prompt.model,
        "spacing": {"median": reading.spacing.median, "tokens": len(reading.spacing.distances)},
        "contexts": [
            {
                "class": owner,
                "vectors": vectors,
                "farther_than": [reading.farther_than(vector) for vector in vectors],
            }
            for owner, vectors in reading.near.items()
        ],
    }
    if reading.movements:
        common, by_class = reading.movements
        pairs = zip(reading.prompt.class_names, by_class, strict=True)
        content["moved"] = {
            "all": _listed(common),
            "classes": [
                {"class": class_name, "similarity": movement.similarity, "towards": _listed(movement.towards)}
                for class_name, movement in pairs
            ],
        }
    return content


def _listed(gains: Gains) -> list[dict[str, Any]]:
    return [{"word": word, "gain": gain} for word, gain in gains]
