"""The command ``fastconv``, also as ``python -m fastconv``.

``fastconv --version`` and ``fastconv info`` need nothing but fastconv. Other commands need the extra ``classifier``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import fastconv
from fastconv.installation import install_command
from fastconv.startup import wants_traceback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default the arguments of the process, and return its exit code.

    Without the extra ``classifier``, only ``--version`` and ``info`` work. Other arguments then give one line on stderr
    and exit code 2.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        fastconv ...
        0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from fastconv.classifier.cli.main import main as command
    except ModuleNotFoundError as missing:
        package = (missing.name or "fastconv").split(".")[0]
        if package == "fastconv" or wants_traceback(given):
            raise
        return _without_extra(given, package)
    return command(given)


def _without_extra(given: list[str], missing: str) -> int:
    """Run a command that needs no extra. For any other command, print the pip command that installs the extra."""
    if given in (["--version"], ["-V"]):
        print(f"fastconv {fastconv.__version__}")
    elif given == ["info"]:
        print(fastconv.show_config())
    elif given == ["info", "--json"]:
        from fastconv.public import configuration

        print(json.dumps(configuration(), indent=2))
    else:
        print(f"fastconv: the command needs {missing}: {install_command('classifier')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
