"""Named sets of hand-written templates: sentences with one `{}` where the class name goes.

`imagenet` holds the 80 templates that OpenAI published for ImageNet; the other plain names are its sets for other
data sets. `imagenet_select_7` and the `paper_*` names are those of the CoOp paper (Section 4.1 and Table 8).
"""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE_SETS: dict[str, list[str]] = json.loads((Path(__file__).parent / "templates.json").read_text("utf-8"))
