"""The model card of a learned prompt or head: README.md in the form that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CoopError
from ..files import CARD_FILE, METRICS_FILE, SETTINGS_FILE
from ..hub import HUB_ID
from ..settings import read_settings
from .head import Head
from .prompt import LearnedPrompt

MARK = "<!-- coop writes this card anew with every fit and push; remove this line to keep your changes -->"
SHOWN_CLASSES = 20
LONGEST = 200  # characters of what the header says of one thing
WHERE = {"end": "the class name after them", "middle": "the class name between them", "front": "the class name before them"}


def model_card(
    learned: LearnedPrompt | Head,
    source: str,
    metrics: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The card of what was learned: YAML, then Markdown.

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
        model_name=_line(source) if scores else None,
        eval_results=_results(learned, scores) if scores else None,
    )
    training = [(_text(key.replace("_", " ")), _entry(key, value)) for key, value in learned.training.items()]
    parts = [
        f"---\n{data.to_yaml()}\n---\n{MARK}",
        f"# {_text(Path(source).name or source)}",
        f"{_what(learned)} Its CLIP is {_base(learned, on_hub)}.",
        f"Its classes ({len(learned.class_names)}): {_classes(learned.class_names)}.",
        _use(learned, source),
        *([_accuracy(learned, metrics, settings or {})] if metrics and scores else []),
        f"## Training\n\n{_table(('what', 'which'), training)}",
        f"Fingerprint of the model's weights, tokenizer and preprocessing: `{_code(learned.fingerprint)}`.",
    ]
    return "\n\n".join(parts) + "\n"


def card_of(path: Path, learned: LearnedPrompt | Head, source: str, license: str | None = None) -> str:
    """The card to publish of what was learned: a run folder's own if its user took it over, else a new one.

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
    """The card with a licence in its front matter. Raises CoopError when that is no YAML."""
    from huggingface_hub import ModelCard

    try:
        parsed = ModelCard(card)
    except Exception as error:  # of the YAML library beneath
        raise CoopError(f"the front matter of {CARD_FILE} is no YAML: {next(iter(str(error).splitlines()), '')}") from error
    parsed.data["license"] = license
    return str(parsed)


def kept_card(folder: Path) -> str | None:
    """A run folder's card if its user took it over by removing the mark. Raises CoopError for one that cannot be read."""
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


def _data_id(learned: LearnedPrompt | Head) -> str | None:
    """The data set's name on the hub, if it came from there: no other has an owner's name before its own."""
    name = learned.training.get("data")
    return name if _is_repo(name) else None


def _results(learned: LearnedPrompt | Head, scores: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    name = _line(learned.training.get("data", "its own data"))
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_data_id(learned) or name,
            dataset_name=name,
            metric_type="accuracy",
            metric_name=label,
            metric_value=scores[kind],
        )
        for label, kind in (("top-1 accuracy", "top1"), ("macro-averaged accuracy", "macro"))
    ]


def _what(learned: LearnedPrompt | Head) -> str:
    if isinstance(learned, Head):
        return f"A classifier over CLIP's image features, learned from few images by {_text(learned.method)}."
    settings = learned.settings
    whose = "for each class its own" if settings.csc else "one context for all classes"
    return (
        "A prompt for CLIP, learned from few images by [CoOp](https://arxiv.org/abs/2109.01134): "
        f"{settings.n_ctx} context vectors, {whose}, {WHERE[settings.position]}."
    )


def _base(learned: LearnedPrompt | Head, on_hub: bool) -> str:
    if on_hub:
        return f"[{_text(learned.model)}](https://huggingface.co/{learned.model}), commit `{_code(learned.revision)}`"
    if learned.model == "mini":
        return "`mini`, the small model that coop brings along"
    return f"`{_code(learned.model)}`, which is no model repository on the hub"


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(map(_text, names[:SHOWN_CLASSES])) + more


def _use(learned: LearnedPrompt | Head, source: str) -> str:
    kind = "Classifier" if isinstance(learned, Head) else "Prompt"
    typed, written = shlex.quote(_line(source)), json.dumps(_line(source), ensure_ascii=False)
    interpret = "" if isinstance(learned, Head) else f"\ncoop interpret {typed}           # the tokens nearest to its vectors"
    return f"""## Use

```sh
pip install coopcli
coop predict {typed} photo.jpg   # which class an image shows
coop eval {typed} photos         # accuracy; photos holds one folder of images per class{interpret}
```

```python
from coopcli import {kind}

prompt = {kind}.load({written})
print(prompt.predict(["photo.jpg"]), prompt.predict_proba(["photo.jpg"]))
```"""


def _accuracy(learned: LearnedPrompt | Head, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    template = settings.get("template")
    by_hand = f'hand-written prompt "{template}"' if template else "hand-written prompt"
    rows = [
        (_text(name), f"{100 * found['top1']:.1f}", f"{100 * found['macro']:.1f}")
        for name, found in ((by_hand, metrics.get("hand_written")), ("learned", metrics["learned"]))
        if found
    ]
    on = f"On {metrics['learned']['n']} test images of {_text(learned.training.get('data', 'its own data'))}:"
    return f"## Accuracy\n\n{on}\n\n{_table(('prompt', 'top-1 %', 'macro average %'), rows)}"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def _entry(key: str, value: Any) -> str:
    """What the header says of the training, which may be anything, as the text of one cell."""
    if isinstance(value, dict):
        return ", ".join(f"{_text(name.replace('_', ' '))} {_text(part)}" for name, part in value.items())
    if value is None:
        return "all" if key == "shots" else "-"
    return _text(value)


def _line(value: Any) -> str:
    """A text of the user's or a file's as one line without what moves the cursor or turns the reading direction."""
    text = " ".join(str(value).split())[:LONGEST]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _text(value: Any) -> str:
    """The same for Markdown, where it shows as it stands."""
    return re.sub(r"[\\`*_\[\]<>#|~$&!:@.]", r"\\\g<0>", _line(value))


def _code(value: Any) -> str:
    """The same for a code span."""
    return _line(value).replace("`", "'")
