"""The error message of the command ``fastconv`` if the import of fastconv or of another package fails.

Python imports this package before it runs the command, so the command's own error handler is not active yet.
"""

import os
import re
import sys
from pathlib import Path
from types import TracebackType

#: Environment variables that make the import of a package fail if their value is invalid.
_VARIABLES = {"matplotlib": "MPLBACKEND"}

#: The line of the installed script, as pip and other installers write it.
_ENTRY_POINT = b"from fastconv.__main__ import main"


def failed_import(trace: TracebackType | None) -> str | None:
    """Return the package whose import raised the exception with this traceback, or None if no import raised it."""
    package = None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__spec__") is not None:
            name = str(frame.f_globals["__name__"]).split(".")[0]
            package = name if name not in ("__main__", "runpy") else package
        trace = trace.tb_next
    return package


def explanation(package: str, error: BaseException) -> str:
    """Return the message for a package that cannot be imported."""
    variable = _VARIABLES.get(package)
    hint = f" ({variable} is {os.environ[variable]!r})" if variable is not None and variable in os.environ else ""
    message = " ".join(str(error).split()) or type(error).__name__
    return f"cannot import {package}: {message}{hint}"


def is_command() -> bool:
    """Return whether this process runs the command, as the installed script ``fastconv`` or as ``python -m fastconv``.

    Another program of the same name is not the command. Call this function only while fastconv is being imported:
    ``sys.argv[0]`` is "-m" only until Python has found the module.
    """
    program, *arguments = sys.argv or [""]
    if program == "-m":
        module = sys.orig_argv[-1 - len(arguments)]
        return re.fullmatch("(-[A-Za-z]*m)?fastconv", module) is not None
    return Path(program).name == "fastconv" and _imports_the_command(Path(program))


def _imports_the_command(script: Path) -> bool:
    try:
        return _ENTRY_POINT in script.read_bytes()
    except OSError:
        return False


def explain_failures() -> None:
    """Report a failed import of the command with one line on stderr and exit code 2, instead of a traceback.

    ``fastconv --traceback`` keeps the traceback. In other programs this function does nothing.
    """
    if not is_command() or wants_traceback(sys.argv):
        return

    def report_failed_import(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        package = failed_import(trace)
        if package is None or not issubclass(kind, Exception):
            sys.__excepthook__(kind, error, trace)
            return
        print(f"fastconv: {explanation(package, error)}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = report_failed_import


def wants_traceback(arguments: list[str]) -> bool:
    return "--traceback" in arguments


explain_failures()
