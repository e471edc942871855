"""A hook of mkdocs: README.md becomes the site's home; benchmarks/README.md and CONTRIBUTING.md are pages of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")  # to a file, with or without an anchor; not to a web address


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for source, name in PAGES.items():
        text = for_site((ROOT / source).read_text("utf-8"), (ROOT / source).parent)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links from docs/ to the pages outside it."""
    return markdown if page.file.src_uri in PAGES.values() else for_site(markdown, ROOT / "docs")


def for_site(markdown: str, folder: Path) -> str:
    """Rewrite the links of a page in `folder` for the site; a link to a file outside the site becomes plain text."""

    def link(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups("")
        place = (folder / target).resolve().relative_to(ROOT).as_posix()
        if place not in PAGES and not place.startswith("docs/"):
            return text
        return f"{image}[{text}]({PAGES.get(place, place.removeprefix('docs/'))}{anchor})"

    return LINK.sub(link, markdown)
