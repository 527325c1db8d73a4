"""The file of ``fastconv train --config``: settings in TOML or JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, create_model

from fastconv.classifier import files, schemas
from fastconv.classifier.cli import options
from fastconv.classifier.cli.train_options import FILE_TYPES
from fastconv.classifier.errors import UserError
from fastconv.classifier.names import suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST = 1 << 20  # bytes
_PATHS = ("data_dir", "output")

#: The schema of the file: all options of ``fastconv train`` that have a value. Names have "_" in place of "-".
Settings = create_model(
    "Settings",
    __config__=ConfigDict(strict=True, allow_inf_nan=False),
    **{name: (str if kind is Path else kind, None) for name, kind in FILE_TYPES.items()},  # type: ignore[call-overload]
)


def read(path: Path) -> dict[str, Any]:
    """Return the options in the file ``path``. Its ending, .toml or .json, is its format.

    Keys are the names of options, such as ``batch-size`` or ``batch_size``. A relative path starts in the current
    folder, as on the command line.
    """
    content = _parse(path)
    if not isinstance(content, dict):
        example = '{"epochs": 3}' if path.suffix.lower() == ".json" else "epochs = 3"
        raise UserError(f"{path} must have names and values, such as {example}")
    given = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = [name.replace("_", "-") for name in FILE_TYPES]
    for name in content:
        if str(name).replace("-", "_") not in FILE_TYPES:
            meant = suggestion(str(name), known)
            raise UserError(f"{path}: unknown setting {str(name)[:60]!r}{meant or '; known are ' + ', '.join(known)}")
    wrong = schemas.problem(Settings, given)
    if wrong is not None:
        raise UserError(f"{path}: {wrong}")
    return {name: options.path(value) if name in _PATHS else value for name, value in given.items()}


def _parse(path: Path) -> object:
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        raise UserError(f"--config reads TOML and JSON, not YAML: write {path} as .toml, with lines such as epochs = 3")
    if kind not in (".toml", ".json"):
        raise UserError(f"--config must end in .toml or .json: {path}")
    text = files.read_bytes(path, _LARGEST)
    try:
        return tomllib.loads(text.decode()) if kind == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {kind[1:].upper()}: {error}") from error
