"""What computes needs neither `datasets` nor `typer`: a machine with a GPU seldom has both."""

import subprocess
import sys
from pathlib import Path

import coopcli

ROOMS = ("data", "clip", "learned", "learning", "demo")
MODULES = [
    ".".join(("coopcli", *path.relative_to(Path(coopcli.__file__).parent).with_suffix("").parts))
    for room in ROOMS
    for path in sorted((Path(coopcli.__file__).parent / room).rglob("*.py"))
    if path.name != "__init__.py"
]


def test_rooms_that_compute_import_without_datasets_and_typer():
    assert len(MODULES) > 30
    code = f"""
import sys
sys.modules["datasets"] = sys.modules["typer"] = None
from importlib import import_module
for name in {MODULES}:
    import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
