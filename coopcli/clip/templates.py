"""Named sets of hand-written templates: sentences with one `{}` where the class name goes.

`imagenet` has the 80 templates that OpenAI published for ImageNet; the other plain names are OpenAI's sets for other
data sets. `imagenet_select_7` and the `paper_*` names are the CoOp paper's.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..data.paper_sets import PAPER_SETS, find_paper_set
from ..errors import UsageError
from ..files import parse_json, read_text, text_lines

TEMPLATE_SETS: dict[str, list[str]] = json.loads((Path(__file__).parent / "templates.json").read_text("utf-8"))
DEFAULT_TEMPLATE = "a photo of a {}."


def read_template(text: str) -> str:
    """The template itself, or by the name of one of the paper's data sets the one that the paper uses for it.

    Raises UsageError for a text that is neither.
    """
    if "{}" in text:
        return text
    if known := find_paper_set(text):
        return TEMPLATE_SETS[f"paper_{known.name}"][0]
    names = ", ".join(one.name for one in PAPER_SETS)
    raise UsageError(f'template "{text}" has no {{}} for the class name, and is not a data set of the paper ({names})')


def read_templates(source: str) -> list[str]:
    """Read the templates of a named set, or of a file: a JSON list, or one template per line.

    Raises UsageError for an unknown name or a file without templates.
    """
    if source in TEMPLATE_SETS:
        return TEMPLATE_SETS[source]
    path = Path(source)
    if not path.is_file():
        raise UsageError(f'"{source}" is neither a template set nor a file; the sets are: {", ".join(TEMPLATE_SETS)}')
    text = read_text(path, "template file", UsageError)
    try:
        templates = parse_json(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise UsageError(f'template file "{path}" is not valid JSON: {error}') from error
        templates = [line.strip() for line in text_lines(text)]
    if not isinstance(templates, list) or not templates or not all(isinstance(item, str) for item in templates):
        raise UsageError(f'template file "{path}" must contain one template per line, or a JSON list of templates')
    return templates
