"""`coop interpret`: what was learned, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..choices import Metric
from . import options
from .console import Bars, out, print_json, progress, shown

if TYPE_CHECKING:
    from torch import Tensor

    from ..clip.backbone import Backbone
    from ..clip.cache import FeatureCache
    from ..learned.interpret import Movement, NearToken, TokenSpacing
    from ..learned.prompt import LearnedPrompt

    Gains = list[tuple[str, float]]


@dataclass(frozen=True)
class Lexicon:
    """What a model's prompts are read by: its tokens, of all or `among` some, and its words with their prompts' features."""

    backbone: Backbone
    among: list[int] | None
    spacing: TokenSpacing
    words: list[str]
    word_features: Tensor | None


@dataclass(frozen=True)
class Reading:
    """A prompt in words: near tokens by class (None: one context for all) and vector, and where class features moved."""

    name: str
    prompt: LearnedPrompt
    spacing: TokenSpacing
    near: dict[str | None, list[list[NearToken]]]
    moved: tuple[Gains, list[Movement]] | None


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
    words: Annotated[bool, typer.Option("--words", help="Whole words only, no pieces of words nor signs.")] = False,
    moved: Annotated[
        bool,
        typer.Option("--moved", help="Also show which words the class features moved towards, from the hand-written ones."),
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", metavar="TEXT", show_default="a photo of a {}.",
            help="For --moved: the hand-written prompt, of classes and words.",
        ),
    ] = None,
    model: options.SameModelOption = None,
    device: options.DeviceOption = "auto",
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """The tokens nearest to each learned vector, in the same model's token embedding.

    A trailing hyphen marks a token that does not end a word: "phot-" begins one, "photo" is whole or ends one. "Farther
    than" tells what a nearest token is worth: the share of tokens that have another token nearer than the vector has its
    nearest. Near 100 % a vector is near to no token, and the words mean little.

    --moved encodes every word of the vocabulary in the hand-written prompt, minutes for CLIP on a CPU, and keeps them in
    the cache. For all classes together, then for each beyond these, it shows the words whose similarity grew most.

    With --json: `{"prompt", "model", "spacing": {"median", "tokens"}, "contexts": [{"class", "vectors": [[{"token",
    "token_id", "distance"}]], "farther_than": [share]}], "moved": {"all": [{"word", "gain"}], "classes": [{"class",
    "similarity", "towards": [{"word", "gain"}]}]}}`; of several prompts a list of these, `prompts`.
    """
    from ..clip.templates import DEFAULT_TEMPLATE
    from ..errors import UsageError
    from ..learned.classifier import check_backbone
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
    def open_model(name: str, revision: str | None) -> Lexicon:
        backbone = open_backbone(name, revision, device, "float32", pickles)
        return _lexicon(backbone, metric, words, template, cache)

    readings = []
    for source, prompt in zip(prompts, learned, strict=True):
        lexicon = open_model(model or prompt.model, None if model else prompt.revision)
        check_backbone(prompt, lexicon.backbone)
        readings.append(_read(source, prompt, lexicon, top, metric, template, cache))
    if json:
        objects = [_as_dict(reading) for reading in readings]
        content = objects[0] if len(objects) == 1 else {"prompts": objects}
        print_json({"command": "interpret", "metric": metric, "words": words, **content})
    else:
        show(readings)


def _lexicon(backbone: Backbone, metric: Metric, words: bool, template: str | None, cache: FeatureCache) -> Lexicon:
    from ..clip.tokens import whole_words
    from ..learned.interpret import encode_words, token_spacing

    known = whole_words(backbone.tokenizer) if words or template is not None else {}
    among = list(known) if words else None
    texts, features = list(known.values()), None
    if template is not None:
        with progress() as live:
            features = encode_words(backbone, texts, template, cache, Bars(live).counter("words"))
    spacing = token_spacing(backbone.text_encoder.token_embedding, metric, among)
    return Lexicon(backbone, among, spacing, texts, features)


def _read(
    name: str, prompt: LearnedPrompt, lexicon: Lexicon, top: int, metric: Metric, template: str | None, cache: FeatureCache
) -> Reading:
    from ..clip.class_features import hand_written_features
    from ..learned.classifier import learned_features
    from ..learned.interpret import movements, nearest_tokens
    from ..names import distinct

    backbone, n_ctx = lexicon.backbone, prompt.settings.n_ctx
    contexts = prompt.context if prompt.settings.csc else prompt.context[None]
    owners = distinct(prompt.class_names) if prompt.settings.csc else (None,)
    table = backbone.text_encoder.token_embedding
    near = nearest_tokens(contexts.flatten(0, 1), table, backbone.tokenizer, top, metric, lexicon.among)
    moved = None
    if template is not None and lexicon.word_features is not None:
        before = hand_written_features(backbone, [template], prompt.class_names, cache)
        after = learned_features(backbone, prompt, prompt.class_names, cache)
        moved = movements(after, before, lexicon.words, lexicon.word_features, top)
    by_owner = {owner: near[k * n_ctx : (k + 1) * n_ctx] for k, owner in enumerate(owners)}
    return Reading(name, prompt, lexicon.spacing, by_owner, moved)


def _farther_than(reading: Reading, vector: Sequence[NearToken]) -> float:
    return reading.spacing.share_below(vector[0].distance)


def show(readings: Sequence[Reading]) -> None:
    """Each context as a table, a row for each vector; several prompts side by side."""
    owners = dict.fromkeys(owner for reading in readings for owner in reading.near)
    for owner in owners:
        if owner is not None:
            out.print(f"[bold]{shown(owner)}[/bold]")
        out.print(_contexts([reading for reading in readings if owner in reading.near], owner))
    for median, name in {reading.spacing.median: reading.prompt.model for reading in readings}.items():
        out.print(
            f"[dim]{shown(name)}: half of its tokens have another nearer than {median:.2f}; "
            "farther than: the share that have one nearer than the vector has[/dim]"
        )
    for reading in readings:
        if reading.moved:
            out.print()
            _show_moved(reading, reading.name if len(readings) > 1 else None)


def _contexts(readings: Sequence[Reading], owner: str | None) -> Table:
    table = _table("vector")
    for reading in readings:
        whose = f"{shown(reading.name)}\n" if len(readings) > 1 else ""
        table.add_column(f"{whose}nearest tokens (distance)", overflow="fold")
        table.add_column("farther\nthan", justify="right", no_wrap=True)
    for row in range(max(len(reading.near[owner]) for reading in readings)):
        cells = []
        for reading in readings:
            vectors = reading.near[owner]
            if row < len(vectors):
                tokens = ", ".join(f"{shown(token.token)} ({token.distance:.2f})" for token in vectors[row])
                cells += [tokens, f"{100 * _farther_than(reading, vectors[row]):.0f} %"]
            else:  # of a shorter context
                cells += ["", ""]
        table.add_row(str(row + 1), *cells)
    return table


def _show_moved(reading: Reading, name: str | None) -> None:
    if not reading.moved:
        return
    common, of_class = reading.moved
    if name:
        out.print(f"[bold]{shown(name)}[/bold]")
    table = _table("class features", "left")
    table.add_column("similarity to hand-written", justify="right")
    table.add_column("moved towards (gain in similarity)")
    table.add_row("all together", "", _gains(common))
    for class_name, movement in zip(reading.prompt.class_names, of_class, strict=True):
        table.add_row(shown(class_name), f"{movement.similarity:.3f}", _gains(movement.towards))
    out.print(table)


def _table(heading: str, justify: str = "right") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    return table


def _gains(gains: Gains) -> str:
    return ", ".join(f"{shown(word)} ({gain:+.2f})" for word, gain in gains) or "no word"


def _as_dict(reading: Reading) -> dict[str, Any]:
    content: dict[str, Any] = {
        "prompt": reading.name,
        "model": reading.prompt.model,
        "spacing": {"median": reading.spacing.median, "tokens": len(reading.spacing.distances)},
        "contexts": [
            {
                "class": owner,
                "vectors": [[asdict(token) for token in vector] for vector in vectors],
                "farther_than": [_farther_than(reading, vector) for vector in vectors],
            }
            for owner, vectors in reading.near.items()
        ],
    }
    if reading.moved:
        common, of_class = reading.moved
        pairs = zip(reading.prompt.class_names, of_class, strict=True)
        content["moved"] = {
            "all": _listed(common),
            "classes": [
                {"class": name, "similarity": movement.similarity, "towards": _listed(movement.towards)}
                for name, movement in pairs
            ],
        }
    return content


def _listed(gains: Gains) -> list[dict[str, Any]]:
    return [{"word": word, "gain": gain} for word, gain in gains]
