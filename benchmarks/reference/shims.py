"""Run the reference (code of 2022) on current PyTorch: what it no longer has is put in its place at run time.

Nothing of the two clones is changed, and nothing of them is copied here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import torch

# Imported by the reference, used for other data sets, downloads and event files only: a stand-in does where they are absent.
UNUSED = ("wilds", "gdown", "torch.utils.tensorboard")
NEEDED = ("yacs", "tabulate", "ftfy", "regex", "tqdm", "scipy", "sklearn", "torchvision")  # see --help


def install(coop: Path, dassl: Path) -> None:
    """Make both clones importable. Raises SystemExit when one of them, or a package that they need, is not there."""
    for folder, module in ((coop, "trainers/coop.py"), (dassl, "dassl/engine/trainer.py")):
        if not (folder / module).is_file():
            raise SystemExit(f'"{folder}" has no {module}: give --coop and --dassl your clones of the two repositories')
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"the reference needs {', '.join(missing)}: see the pip commands in `--help`")
    sys.path[:0] = [str(coop.resolve()), str(dassl.resolve())]
    _stand_in_for_unused()
    _define_torchvision_operators()
    _accept_verbose()
    # Checkpoints hold a scheduler; until 2.6 PyTorch read such pickles by default. Only files of this run are read.
    torch.load = functools.partial(torch.load, weights_only=False)


def _stand_in_for_unused() -> None:
    for name in UNUSED:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()


def _define_torchvision_operators() -> None:
    """Declare the compiled operators that torchvision asks for as it is imported, where its build does not fit this PyTorch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _kept.append(library)
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # never called
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


_kept: list[torch.library.Library] = []  # a declaration ends with its library


def _accept_verbose() -> None:
    """Let schedulers be made with `verbose`, which PyTorch has removed."""
    schedulers = torch.optim.lr_scheduler
    made = schedulers.LRScheduler.__init__

    def init(self: object, optimizer: torch.optim.Optimizer, last_epoch: int = -1, verbose: bool = False) -> None:
        made(self, optimizer, last_epoch)

    schedulers._LRScheduler.__init__ = init


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep what the reference prints from the table; it can be read from the value."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        yield text
