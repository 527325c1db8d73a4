"""Read input files, and write results atomically."""

import contextlib
import os
from pathlib import Path

from fastconv.classifier.errors import UserError


class OutputError(UserError):
    """A path cannot be written, or an existing file must not be overwritten."""


def check_output_folder(folder: Path) -> None:
    """Create ``folder`` if it does not exist, and check that a file can be written in it."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write into {folder}: it is a file, not a folder")
    probe = folder / f".fastconv-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of the file ``path``.

    Raises:
        UserError: if it cannot be read, is a pipe or a device, or has more than ``limit`` bytes.
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
    """Check that ``path`` is not a pipe or a device, because reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is not a file")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it, so that no reader sees a partial file.

    Raises:
        OutputError: if it cannot be written. An earlier file then stays unchanged.
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
    """Remove the temporary files that :func:`write_atomically` left beside ``path`` when its process was killed."""
    for temporary in path.parent.glob(f".{path.name}-*.tmp"):
        with contextlib.suppress(OSError):
            temporary.unlink()
