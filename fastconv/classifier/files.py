"""Writing results: never half a file, never over what was not ours."""

import contextlib
import os
from pathlib import Path

from fastconv.classifier.errors import UserError


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


def read_bytes(path: Path, limit: int) -> bytes:
    """What is in the file ``path``.

    Raises:
        UserError: if it cannot be read, is a pipe or a device, which may have no end, or has more than ``limit`` bytes.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > limit:
        raise UserError(f"{path} is too large: more than {limit:,} bytes")
    return content


def check_regular(path: Path) -> None:
    """See that ``path`` is no pipe or device: reading one may take forever.

    Raises:
        UserError: if it is one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is not a file")


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
