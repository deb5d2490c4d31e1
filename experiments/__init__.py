"""Commands of the project and what they share: tasks, heuristics, reports, settings by flag."""

import os
import sys


def _on_error(kind, error, trace) -> None:
    """Ctrl-C outside training is one line and exit code 130, in every command and while it still imports."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    sys.stdout.flush()
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)  # threads that are still at work must not hold it up


sys.excepthook = _on_error
