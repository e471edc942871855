"""Errors that a user can fix. The command line prints them as one line; any other exception is a defect."""

from __future__ import annotations


class CoopError(Exception):
    """The data, a file or the machine is at fault. Exit code 1."""


class UsageError(CoopError):
    """The command is at fault: an option, a contradiction, a missing path. Exit code 2."""
