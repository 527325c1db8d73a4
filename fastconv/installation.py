"""The pip command that installs an extra of fastconv from the same origin as fastconv itself."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

__all__ = ["install_command"]


def install_command(extra: str) -> str:
    """Return the command that installs ``extra`` from the origin of this installation.

    The origin is a clone, a wheel file, a Git repository or a package index. An editable install stays editable. pip
    records the origin in the file ``direct_url.json``, unless it is a package index.

    Example:
        >>> install_command("classifier")
        "pip install ...[classifier]..."
    """
    return command_for(_origin(), extra)


def command_for(origin: dict[str, Any] | None, extra: str) -> str:
    """Return the command for the content of ``direct_url.json``. ``None`` means a package index."""
    if origin is None:
        return f"pip install 'fastconv[{extra}]'"
    url = str(origin.get("url", ""))
    path = unquote(urlparse(url).path)
    if "dir_info" in origin:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f"pip install --no-build-isolation {editable}{shlex.quote(f'{path}[{extra}]')}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        source = f"fastconv[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
        return f"pip install --no-build-isolation {shlex.quote(source)}"
    return f"pip install {shlex.quote(f'fastconv[{extra}] @ {url}')}"


def _origin() -> dict[str, Any] | None:
    """Return the origin of this installation. If fastconv is not installed but runs from a clone, return the clone."""
    clone = Path(__file__).resolve().parents[1]
    try:
        recorded = metadata.distribution("fastconv").read_text("direct_url.json")
        origin = json.loads(recorded) if recorded else None
    except (metadata.PackageNotFoundError, ValueError):
        origin = None
    if isinstance(origin, dict):
        return origin
    return {"url": clone.as_uri(), "dir_info": {}} if (clone / "pyproject.toml").exists() else None
