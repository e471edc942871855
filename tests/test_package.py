"""The package as a whole: its public names, and documents that must not drift from the code."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

import coopcli

ROOT = Path(__file__).parents[1]
# The command without its script, which a checkout need not have installed.
COOP = [sys.executable, "-c", "import sys; sys.argv[0] = 'coop'; from coopcli.__main__ import main; main()"]


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves folders behind."""
    if not find_spec("setuptools") or Version(version("setuptools")) < Version("77"):
        pytest.skip("needs the build backend, setuptools 77 or later")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "coopcli", folder / "coopcli", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_brings_every_file(wheel):
    brought = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("coopcli/")}
    listed = subprocess.run(["git", "ls-files", "coopcli"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        assert set(listed.stdout.split()) <= brought
    assert {
        "coopcli/mini/model.safetensors",
        "coopcli/clip/templates.json",
        "coopcli/py.typed",
        "coopcli/cli/app.py",
    } <= brought


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 15e6


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (files.read(name).decode() for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        (commands,) = (files.read(name).decode() for name in files.namelist() if name.endswith("/entry_points.txt"))
        assert any(name.endswith("/licenses/LICENSE") for name in files.namelist())
    told = email.message_from_string(metadata)
    assert (told["Name"], told["Version"]) == ("coopcli", coopcli.__version__)
    assert told["Requires-Python"] == ">=3.11" and told["License-Expression"] == "MIT"
    assert told["Summary"] and "# coop" in told.get_payload()
    assert "coop = coopcli.__main__:main" in commands


def test_wheel_works_alone(wheel, tmp_path):
    """Unpacked, with none of the checkout's files in reach: the command, its data, and the embedded model."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        "import coopcli, coopcli.cli.app, coopcli.clip.templates\n"
        "from coopcli.clip.backbone import load_backbone\n"
        "print(coopcli.__file__, load_backbone('mini', device='cpu').name)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / "coopcli" / "__init__.py"), "mini"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("coop z", "zeroshot"), ("coop fit --sho", "--shots"), ("coop fit --position m", "middle"), ("coop cache c", "clear")],
)
def test_shell_completion(typed, offered):
    words = typed.split()
    completion = {"_COOP_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    made = subprocess.run(COOP, env=os.environ | completion, capture_output=True, text=True, check=True)
    assert offered in made.stdout.split()


def test_completion_script():
    """What `coop --install-completion` installs. The shell is named: typer would look for it among the parent processes."""
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    made = subprocess.run([*COOP, "--show-completion", "bash"], env=named, capture_output=True, text=True, check=True)
    assert "_COOP_COMPLETE=complete_bash" in made.stdout and made.stdout.rstrip().endswith(" coop")
