"""Writing results: never half a file, never over what was not ours."""

import contextlib
import os
from pathlib import Path

from fastconv.mnist import UserError


class OutputError(UserError):
    """A place that cannot be written to, or holds something that must not be overwritten."""


def check_output_folder(folder: Path) -> None:
    """Make ``folder`` unless it is there, and see that a file can be written in it.

    Raises:
        OutputError: if not.
    """
    probe = folder / f".fastconv-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written: under another name first, then renamed, replacing an older one.

    Raises:
        OutputError: if it cannot be written; an older file is then as it was.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what :func:`write_atomically` left beside ``path`` where it was killed."""
    for temporary in path.parent.glob(f".{path.name}-*.tmp"):
        with contextlib.suppress(OSError):
            temporary.unlink()
