"""The methods that coop compares, as one table: to add a method, write a module here and add its row below.

Nothing heavy is imported: the command line reads the table before PyTorch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from ...learned.head import Head
    from .task import FewShotTask


@dataclass(frozen=True)
class Method:
    """A way to a classifier.

    `learns` says which numbers are learned, as the tables of a sweep show it. `function` is "module:function" of this
    package and turns a FewShotTask into a Head; it is imported when it is used. Hand-written prompts and prompt learning
    have none: experiments/experiment.py runs them. `package` is a Python package beyond coop's own that it needs, with the
    name to install it by.
    """

    name: str
    learns: str = "nothing"
    function: str | None = None
    hand_written: bool = False
    package: tuple[str, str] | None = None

    def learn(self, task: FewShotTask) -> Head:
        """Learn a head from the train images of a task. Raises UsageError when a package is not installed."""
        if not self.function:
            raise ValueError(f"{self.name} learns no head")
        self.check_package()
        module, _, function = self.function.partition(":")
        head: Head = getattr(import_module(f".{module}", __name__), function)(task)
        return head

    def check_package(self) -> None:
        """Raise UsageError when the package that this method needs is not installed."""
        if self.package and find_spec(self.package[0]) is None:
            raise UsageError(
                f"{self.name} needs {self.package[1]}: pip install 'coopcli[sweep]', or leave {self.name} out of --methods"
            )


ROWS = [
    Method("zeroshot", hand_written=True),
    Method("ensemble", hand_written=True),
    Method("coop", "context vectors beside the class names"),
    Method("linear-probe", "class weights and biases", "linear_probe:learn", package=("sklearn", "scikit-learn")),
    Method("lp++", "class weights, and how far each name counts", "lp_plus_plus:learn"),
    Method("tip-adapter", "nothing; keeps the features of the train images", "tip_adapter:learn"),
    Method("tip-adapter-f", "the kept features of the train images", "tip_adapter:learn_f"),
    Method("text-bias", "a vector added to each class feature", "text_tuning:learn_bias"),
    Method("text-transform", "a matrix on the class features", "text_tuning:learn_transform"),
    Method("fine-tune", "the image encoder", "fine_tune:learn"),
]
METHODS = {method.name: method for method in ROWS}
COOP, LINEAR_PROBE = "coop", "linear-probe"
