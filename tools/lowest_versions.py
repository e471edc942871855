"""Run the tests with the lowest versions that pyproject.toml allows, each Python in a virtual environment of its own.

    python tools/lowest_versions.py                                # this Python, all tests
    python tools/lowest_versions.py --python python3.12 python3.13
    python tools/lowest_versions.py --use torch==2.13.0 tests/clip # another version of one package, some tests

Prints a table, a row for each Python, with what was installed and how the tests ended. Exits with 1 when one failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTED_WITH = ["pytest", "hypothesis", "setuptools", "packaging", "scikit-learn", "matplotlib"]  # at any version that fits


def lowest(dependencies: list[str], replaced: list[str]) -> list[str]:
    """`name==version` for each `name>=version`, or what replaces it: `name==other`."""
    if unpinned := [requirement for requirement in replaced if "==" not in requirement]:
        raise SystemExit(f"--use {unpinned[0]}: give NAME==VERSION")
    others = {requirement.partition("==")[0]: requirement for requirement in replaced}
    pinned = []
    for dependency in dependencies:
        name, _, version = dependency.partition(">=")
        pinned.append(others.pop(name, f"{name}=={version}"))
    if others:
        raise SystemExit(f"--use {next(iter(others.values()))}: coop does not depend on it")
    return pinned


def run(python: str, requirements: list[str], tests: list[str], folder: Path) -> tuple[list[str], str]:
    """Installed versions, and the last line of pytest, or why it did not come to that."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    version = subprocess.run([own, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True)
    pinned = [version.stdout.strip(), *[requirement.partition("==")[2] for requirement in requirements]]
    # torch first: asked for beside others, pip would take a larger build of it than is needed.
    torch = [requirement for requirement in requirements if requirement.startswith("torch==")]
    for wanted in (torch, [*requirements, *TESTED_WITH]):
        done = subprocess.run([own, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
            return pinned, f"not installed: {reason.removeprefix('ERROR: ')}"
    command = [own, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    print(done.stdout, file=sys.stderr)
    return pinned, re.sub(r"^=+ | =+$| in .*", "", done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=["tests"])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters; default: this one")
    parser.add_argument("--use", action="append", default=[], metavar="NAME==VERSION", help="in place of the lowest")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = lowest(project["dependencies"], options.use)
    names = ["Python", *[requirement.partition("==")[0] for requirement in requirements], " ".join(options.tests)]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)
    failed = False
    for python in options.python:
        with tempfile.TemporaryDirectory() as folder:
            versions, outcome = run(python, requirements, options.tests, Path(folder) / "venv")
        failed |= "passed" not in outcome or "failed" in outcome or "error" in outcome
        print(f"| {' | '.join([*versions, outcome])} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
