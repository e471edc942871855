"""The package as a whole: its public names, and documents that must not drift from the code."""

import subprocess
import sys
from pathlib import Path

import pytest

import coopcli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", coopcli.__all__)
def test_public_names(name):
    assert getattr(coopcli, name).__doc__


def test_no_other_names():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = coopcli.nonsense


def test_command_reference_is_current():
    """Renew it with the command that stands at the top of docs/commands.md."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "coopcli.cli.app", "utils", "docs", "--name", "coop", "--title", "Command reference"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    kept = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert kept.split("-->\n\n", 1)[1].strip() == made.strip()


def test_pages_link_to_files_that_are_there():
    import re

    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


def test_every_dependency_is_pinned():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["test"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {r.name.lower(): r for r in map(Requirement, (line for line in lines if line and line[0] != "#"))}
    for requirement in wanted:
        (pin,) = pinned[requirement.name.lower().replace("_", "-")].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version)
