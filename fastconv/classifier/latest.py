"""The places of runs: each run has a folder in ``runs``, and ``runs/latest`` points to the last run."""

import contextlib
import os
import re
from pathlib import Path

from fastconv.classifier import files
from fastconv.classifier.errors import UserError

RUNS = Path("runs")
#: A symbolic link to the folder of the last run. If the system has no links, a file with the path, relative to `RUNS`.
LATEST = RUNS / "latest"
_LONGEST_NAME = 200  # bytes; file systems allow 255
_LONGEST_PATH = 1 << 12


def new_folder(name: str) -> Path:
    """Create the folder ``runs/NAME-N``, where N is one more than in any earlier run of the same name."""
    files.check_output_folder(RUNS)
    name = os.fsencode(name)[:_LONGEST_NAME].decode(errors="ignore")
    numbers = (re.fullmatch(re.escape(name) + r"-(\d{1,9})", path.name) for path in RUNS.iterdir())
    number = max((int(found[1]) for found in numbers if found), default=0)
    while True:
        number += 1
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        except OSError as error:
            raise files.OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
        return folder


def point_to(folder: Path) -> Path | None:
    """Let ``runs/latest`` point to ``folder``. Return the folder that it pointed to before, for :func:`forget`.

    Raises:
        OutputError: if ``runs/latest`` is a folder of the user, or cannot be written.
    """
    if LATEST.is_dir() and not LATEST.is_symlink():
        raise files.OutputError(f"{LATEST} is a folder, but it should point to the last run: rename it")
    files.check_output_folder(RUNS)
    before = followed(LATEST) if os.path.lexists(LATEST) else None
    target = os.path.relpath(os.path.realpath(folder), os.path.realpath(RUNS))
    temporary = RUNS / f".latest-{os.getpid()}.tmp"
    try:
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except (OSError, NotImplementedError):  # Windows without the right to make links, some network drives
            temporary.write_bytes(os.fsencode(target))
        os.replace(temporary, LATEST)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise files.OutputError(f"cannot write {LATEST}: {error.strerror or error}") from error
    return before


def forget(folder: Path, before: Path | None) -> None:
    """Remove ``folder`` if it is empty, and let ``runs/latest`` point to the run ``before`` it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    if before is not None and before.is_dir():
        point_to(before)
    else:
        LATEST.unlink(missing_ok=True)


def folder() -> Path:
    """Return the folder of the last run."""
    if not os.path.lexists(LATEST):
        raise UserError(
            "there is no run here yet: 'fastconv train' makes one. Or give the folder of a run, or a checkpoint file"
        )
    found = followed(LATEST)
    if not found.is_dir():
        raise UserError(f"{LATEST} points to {found}, which is gone: give the folder of a run, or a checkpoint file")
    return found


def followed(path: Path) -> Path:
    """Return the folder that ``path`` points to if it is named ``latest``. Return any other path unchanged.

    Example::

        >>> followed(Path("runs/mine"))
        PosixPath('runs/mine')
    """
    if path.name != LATEST.name:
        return path
    if path.is_symlink():
        target = os.readlink(path)
        return Path(os.path.normpath(path.parent / target))
    if path.is_file() and path.stat().st_size <= _LONGEST_PATH:
        target = os.fsdecode(files.read_bytes(path, _LONGEST_PATH))
        found = Path(os.path.normpath(path.parent / target)) if target and "\0" not in target else path
        return found if found.is_dir() else path  # another file of this name, for example an image
    return path
