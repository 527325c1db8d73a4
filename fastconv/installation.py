"""The pip command that adds an extra, in the way in which fastconv was installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

__all__ = ["install_command"]


def install_command(extra: str) -> str:
    """Return the command that installs ``extra`` and keeps the kind of the installation.

    An editable install stays editable. A clone or a wheel file is named by its path. Otherwise, the name of the package
    is enough. pip records the origin of an installation in the file ``direct_url.json``.

    Example:
        >>> install_command("classifier")
        "pip install ...[classifier]..."
    """
    return command_for(_origin(), extra)


def command_for(origin: dict[str, Any] | None, extra: str) -> str:
    """Return the command for the content of a ``direct_url.json``. None: an installation from a package index."""
    if origin is None:
        return f"pip install 'fastconv[{extra}]'"
    url = str(origin.get("url", ""))
    path = unquote(urlparse(url).path)
    if "dir_info" in origin:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f"pip install --no-build-isolation {editable}{_quoted(f'{path}[{extra}]')}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        source = f"fastconv[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
        return f"pip install --no-build-isolation {_quoted(source)}"
    return f"pip install {_quoted(f'fastconv[{extra}] @ {url}')}"


def _quoted(argument: str) -> str:
    """Quote for the shell, also if the shell would not need it: zsh expands [ ]."""
    quoted = shlex.quote(argument)
    return quoted if quoted.startswith("'") else f"'{quoted}'"


def _origin() -> dict[str, Any] | None:
    """Return the origin of this installation. A source folder that is not installed counts as its own origin."""
    clone = Path(__file__).resolve().parents[1]
    try:
        recorded = metadata.distribution("fastconv").read_text("direct_url.json")
        origin = json.loads(recorded) if recorded else None
    except (metadata.PackageNotFoundError, ValueError):
        origin = None
    if isinstance(origin, dict):
        return origin
    return {"url": clone.as_uri(), "dir_info": {}} if (clone / "pyproject.toml").exists() else None
