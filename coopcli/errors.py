"""The errors a user can mend. The command line prints their one line; anything else is a defect."""

from __future__ import annotations


class CoopError(Exception):
    """The data, a file or the machine is at fault. Exit code 1."""


class UsageError(CoopError):
    """The command is at fault: an option, a contradiction, a path that is not there. Exit code 2."""
