"""How fastconv is installed, for messages: the pip command for an extra, and the remedy for a missing extension."""

import json
import shlex
import sys
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

__all__ = ["install_command", "not_built"]

_PACKAGE = Path(__file__).resolve().parent


def install_command(extra: str) -> str:
    """Return the command that installs ``extra`` from the origin of this installation.

    The origin is a clone, a wheel file, a Git repository or a package index. An editable install stays editable. pip
    records the origin in the file ``direct_url.json``, unless it is a package index.

    Example:
        >>> "pip install" in install_command("classifier")
        True
    """
    return command_for(_origin(), extra)


def not_built() -> str:
    """Return the error message for a package without its compiled extension, such as the sources in a clone.

    Python imports the sources in place of an installed package if a program is started in the clone.
    """
    editable = "pip install --no-build-isolation --editable ."
    installed = next(filter(_is_compiled, (Path(folder, "fastconv") for folder in sys.path)), None)
    if installed is None or _is_compiled(_PACKAGE):
        return f"fastconv's extension is not built: {editable} (in its source folder)"
    return (
        f"Python imports fastconv's sources in {_PACKAGE}, without the extension, and not the installed package in"
        f" {installed}: start Python in another folder, or type {editable} (in {_PACKAGE.parent})"
    )


def _is_compiled(package: Path) -> bool:
    return any((package / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def command_for(origin: dict[str, Any] | None, extra: str) -> str:
    """Return the command for the content of ``direct_url.json``. ``None`` means a package index."""
    if origin is None:
        return f"pip install 'fastconv[{extra}]'"
    url = str(origin.get("url", ""))
    path = unquote(urlparse(url).path)
    if "dir_info" in origin:
        source = shlex.quote(f"{path}[{extra}]")
        if origin["dir_info"].get("editable"):  # its extension is compiled already
            return f"FASTCONV_COMPILE=0 pip install --no-build-isolation --editable {source}"
        return f"pip install --no-build-isolation {source}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        source = f"fastconv[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
        return f"pip install --no-build-isolation {shlex.quote(source)}"
    return f"pip install {shlex.quote(f'fastconv[{extra}] @ {url}')}"


def _origin() -> dict[str, Any] | None:
    """Return the origin of this installation. If fastconv is not installed but runs from a clone, return the clone."""
    clone = _PACKAGE.parent
    try:
        recorded = metadata.distribution("fastconv").read_text("direct_url.json")
        origin = json.loads(recorded) if recorded else None
    except (metadata.PackageNotFoundError, ValueError):
        origin = None
    if isinstance(origin, dict):
        return origin
    return {"url": clone.as_uri(), "dir_info": {}} if (clone / "pyproject.toml").exists() else None
