"""The model card of a learned prompt or head: README.md in the form that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CoopError
from ..files import CARD_FILE, METRICS_FILE, SETTINGS_FILE
from ..hub import HUB_ID
from ..settings import read_settings
from .head import Head
from .prompt import LearnedPrompt

if TYPE_CHECKING:
    from jinja2 import Template

MARK = "<!-- coop writes this card anew with every fit and push; remove this line to keep your changes -->"
SHOWN_CLASSES = 20
LONGEST = 200  # characters of one value from the header
TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(
    learned: LearnedPrompt | Head,
    source: str,
    metrics: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Render the card of what was learned: YAML, then Markdown.

    `source` is what a command takes for it, a path or `user/name` on the hub; `metrics` and `settings` are the contents of
    metrics.json and of the settings file. Names and texts show as they are: as YAML, Markdown or HTML they do nothing.
    """
    from huggingface_hub import ModelCardData  # late: see prepare_hub

    is_head, scores = isinstance(learned, Head), metrics and metrics.get("learned")
    on_hub = learned.revision is not None and _is_repo(learned.model)
    data = ModelCardData(
        library_name="coop",
        base_model=learned.model if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        pipeline_tag="image-classification" if is_head else "zero-shot-image-classification",
        tags=["coop", "clip", "few-shot", *([] if is_head else ["prompt-learning"])],
        datasets=_data_id(learned),
        metrics=["accuracy"] if scores else None,
        model_name=_model_name(source) if scores else None,
        eval_results=_results(learned, scores) if scores else None,
    )
    return _template().render(
        front_matter=data.to_yaml(),
        mark=MARK,
        title=Path(source).name or source,
        learned=learned,
        on_hub=on_hub,
        shown_classes=SHOWN_CLASSES,
        source=source,
        scores=scores,
        hand_written=(metrics or {}).get("hand_written"),
        template=(settings or {}).get("template"),
    )


def card_of(path: Path, learned: LearnedPrompt | Head, source: str, license: str | None = None) -> str:
    """Get the card to publish: a run folder's own if its user took it over, else a new one.

    Raises CoopError for a file of the run folder that cannot be read.
    """
    text = kept_card(path) if path.is_dir() else None
    if text is None:
        metrics, settings = path / METRICS_FILE, path / SETTINGS_FILE
        try:
            known = json.loads(metrics.read_text("utf-8")) if metrics.is_file() else None
            text = model_card(learned, source, known, read_settings(settings) if settings.is_file() else None)
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise CoopError(f'"{metrics}" is not what `coop fit` wrote') from error
    return _licensed(text, license) if license else text


def _licensed(card: str, license: str) -> str:
    """Add a licence to the front matter of a card. Raises CoopError when that is not YAML."""
    from huggingface_hub import ModelCard

    try:
        parsed = ModelCard(card)
    except Exception as error:  # of the YAML library beneath
        raise CoopError(f"the front matter of {CARD_FILE} is not YAML: {next(iter(str(error).splitlines()), '')}") from error
    parsed.data["license"] = license
    return str(parsed)


def kept_card(folder: Path) -> str | None:
    """Get a run folder's card if its user took it over by removing the mark. Raises CoopError when it cannot be read."""
    try:
        text = (folder / CARD_FILE).read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CoopError(f'"{folder / CARD_FILE}" cannot be read: {error}') from error
    return None if MARK in text else text


def _is_repo(name: object) -> bool:
    match = HUB_ID.fullmatch(name) if isinstance(name, str) else None
    return match is not None and match["revision"] is None


def _model_name(source: str) -> str:
    """What the hub lists results under: the repository's id, or the name of a run folder; no path, no branch."""
    on_hub = HUB_ID.fullmatch(source) and not Path(source).exists()
    return _line(source.partition("@")[0] if on_hub else Path(source).name or source)


def _data_id(learned: LearnedPrompt | Head) -> str | None:
    """The data set's name on the hub, if it came from there: only such names begin with an owner."""
    name = learned.training.get("data")
    return name if _is_repo(name) else None


def _results(learned: LearnedPrompt | Head, scores: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    given = learned.training.get("data", "its own data")
    # Of a path, which says nothing to others, only its last part names the data.
    last = given if _is_repo(given) else re.split(r"[\\/]", str(given).rstrip("\\/"))[-1]
    name = _line(last) or "its own data"
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_data_id(learned) or re.sub(r"[^\w.-]+", "-", name),
            dataset_name=name,
            metric_type="accuracy",
            metric_name=label,
            metric_value=scores[kind],
        )
        for label, kind in (("top-1 accuracy", "top1"), ("macro-averaged accuracy", "macro"))
    ]


class _Ready(str):
    """Text that is printed as it is."""


def _template() -> Template:
    """The template of the card. What it prints is escaped for Markdown, unless a filter has made it ready."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, _Ready) else _text(value),
    )
    filters: dict[str, Callable[..., str]] = {
        "raw": str,
        "code": _code,
        "shell": lambda value: shlex.quote(_line(value)),
        "python": lambda value: json.dumps(_line(value), ensure_ascii=False),
        "percent": lambda share: f"{100 * share:.1f}",
        "entry": _entry,
    }
    environment.filters |= {name: _ready(function) for name, function in filters.items()}
    return environment.from_string(TEMPLATE.read_text("utf-8"))


def _ready(function: Callable[..., str]) -> Callable[..., _Ready]:
    return lambda *given: _Ready(function(*given))


def _entry(value: Any, key: str) -> str:
    """What the header says of the training, which may be anything, as the text of one table cell."""
    if isinstance(value, dict):
        return ", ".join(f"{_text(name.replace('_', ' '))} {_text(part)}" for name, part in value.items())
    if value is None:
        return "all" if key == "shots" else "-"
    return _text(value)


def _line(value: Any) -> str:
    """Make one line of a text, without characters that move the cursor or turn the reading direction."""
    text = " ".join(str(value).split())[:LONGEST]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _text(value: Any) -> str:
    """Make one line that Markdown shows as it is."""
    return re.sub(r"[\\`*_\[\]<>#|~$&!:@.]", r"\\\g<0>", _line(value))


def _code(value: Any) -> str:
    """Make one line for a code span."""
    return _line(value).replace("`", "'")
