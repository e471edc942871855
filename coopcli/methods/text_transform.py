"""To come."""

from __future__ import annotations

from ..head import Head
from .task import Task


def learn(task: Task) -> Head:
    """To come."""
    raise NotImplementedError
