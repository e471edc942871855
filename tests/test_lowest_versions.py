import tomllib
from pathlib import Path

import lowest_versions
import pytest


def test_every_dependency_has_a_lowest_version():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = lowest_versions.lowest(project["dependencies"], [])
    assert len(pinned) == len(project["dependencies"])
    assert all(name and version for name, _, version in (requirement.partition("==") for requirement in pinned))


def test_one_package_at_another_version():
    assert lowest_versions.lowest(["torch>=2.6", "numpy>=1.26"], ["torch==2.13.0"]) == ["torch==2.13.0", "numpy==1.26"]


@pytest.mark.parametrize("wrong", ["tensorflow==2", "torch", "torch>=2.7"])
def test_what_coop_does_not_depend_on_or_is_no_version(wrong):
    with pytest.raises(SystemExit, match=wrong):
        lowest_versions.lowest(["torch>=2.6", "numpy>=1.26"], [wrong])
