"""The entry point of `coop` and `python -m coopcli`: runs the command line and turns errors into one line each."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 data or machine at fault, 2 the command at fault, 130 Ctrl-C.

    COOP_DEBUG=1 shows the traceback of any error.
    """
    try:
        from .cli.app import app

        app()
    except SystemExit as exit_:
        if exit_.code == 130:
            _stopped()
        raise
    except KeyboardInterrupt:
        _stopped()
        sys.exit(130)
    except Exception as error:
        if os.environ.get("COOP_DEBUG"):
            raise
        from .errors import CoopError, UsageError

        told = str(error) if isinstance(error, CoopError) else f"{type(error).__name__}: {error} (COOP_DEBUG=1 shows where)"
        print(f"coop: {told}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _stopped() -> None:
    print("coop: stopped; the same command goes on from here: features and the last whole epoch are kept", file=sys.stderr)


if __name__ == "__main__":
    main()
