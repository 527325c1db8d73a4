"""Time the algorithms of each convolution, and keep the fastest: ``with fastconv.tune():``.

The operators measure the times (csrc/cpu/tuning.cpp). docs/howto/tuning.md describes tuning for users.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import ContextDecorator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastconv import environment
from fastconv._ops.library import _C
from fastconv.processor import cpu_model
from fastconv.version import __version__

__all__ = ["Choice", "Choices", "OtherMachineError", "TuningError", "choices", "clear", "load", "save", "tune"]

logger = logging.getLogger(__name__)

#: The first entries of a file. A file with another version has another list of fields or algorithms.
FORMAT = {"format": "fastconv tuning", "version": 1}


class TuningError(ValueError):
    """A file of choices cannot be read or written, is damaged, or belongs to another machine or version."""


class OtherMachineError(TuningError):
    """A file of choices belongs to another processor, ISA level or version."""


class tune(ContextDecorator):  # lower case, as torch.no_grad
    """A context that times each convolution that it meets, and keeps the fastest way to compute it.

    The first call of a convolution within the context runs all algorithms of fastconv that can compute it, and
    PyTorch's own operator, on the tensors of the call. Forward, the gradient of the input and the gradient of the
    weight are separate choices. Later calls use the fastest one, also outside of the context, until the process ends.
    :attr:`torch.backends.cudnn.benchmark` does the same on a GPU.

    A choice is for one shape, dtype, memory format and number of threads. For a gradient it is also for the share of
    zeros, in steps of an eighth. The context works for every route to fastconv: functions, layers, converted models,
    :class:`fastconv.enabled` and compiled models. All threads of the process are timed. Contexts nest. It also works as
    a decorator.

    Results then depend on a measurement: two processes may choose differently, and their results differ by rounding.
    Every choice keeps the documented bound of the error. See :func:`choices`, :func:`save` and :func:`load`.

    Example:
        >>> layer = torch.nn.Conv2d(16, 16, 3)
        >>> import fastconv
        >>> with tune(), fastconv.enabled():
        ...     y = layer(torch.randn(2, 16, 14, 14))
        >>> [choice.weight for choice in choices()]
        [(16, 16, 3, 3)]
        >>> clear()
    """

    def __enter__(self) -> tune:
        _C.tuning_begin()
        return self

    def __exit__(self, *_: object) -> None:
        _C.tuning_end()
        _log_new_choices()


@dataclass(frozen=True)
class Choice:
    """The choice for one pass of one convolution. ``str`` describes it in a line."""

    #: "forward", "backward_data" (the gradient of the input) or "backward_weight".
    pass_: str
    #: Sizes (N, C, H, W) of the input and (K, C / groups, R, S) of the weight.
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    #: True if the operator fuses a ReLU, and the max-pool that it fuses: (kernel_size, stride, padding, dilation,
    #: ceil_mode).
    relu: bool
    pool: tuple[Any, ...] | None
    dtype: str
    #: The memory formats of input and weight (forward), grad_output and weight (backward_data), or grad_output and
    #: input (backward_weight): "nchw", "nhwc" (channels_last), "either" (one channel or one pixel) or "strided".
    operands: tuple[str, ...]
    #: The memory format of the result.
    result: str
    threads: int
    #: The eighths of the convolution's results that have a gradient, rounded up. None if they do not matter.
    eighths: int | None
    #: The fastest algorithm, and the one that fastconv's rules would use.
    chosen: str
    planned: str
    #: The least time of each candidate. Candidates that failed are missing.
    microseconds: Mapping[str, float]

    def call(self) -> str:
        """Describe the call, without the choice.

        Example:
            >>> choice = Choice(
            ...     "forward", (8, 3, 9, 9), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1, False, None, "float32",
            ...     ("nhwc", "nhwc"), "nhwc", 2, None, "direct", "torch", {"direct": 20.0, "torch": 41.0},
            ... )
            >>> choice.call()
            'forward 8x3x9x9, 4x3x3x3, padding 1, float32, nhwc, 2 threads'
            >>> str(choice)
            'forward 8x3x9x9, 4x3x3x3, padding 1, float32, nhwc, 2 threads: direct 20 us (rules: torch 41 us)'
        """
        parts = [f"{self.pass_} {_by(self.input)}", _by(self.weight)]
        parts += [f"stride {_by(self.stride)}"] if set(self.stride) != {1} else []
        parts += [f"padding {_by(self.padding)}"] if set(self.padding) != {0} else []
        parts += [f"dilation {_by(self.dilation)}"] if set(self.dilation) != {1} else []
        parts += [f"{self.groups} groups"] if self.groups != 1 else []
        parts += ["ReLU"] if self.relu else []
        parts += [f"pool {_by(self.pool[0])}"] if self.pool is not None else []
        formats = [*self.operands, self.result]
        known = {name for name in formats if name != "either"}
        parts += [self.dtype, known.pop() if len(known) == 1 else " ".join(formats)]
        parts += [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        parts += [f"{self.eighths}/8 non-zero"] if self.eighths is not None else []
        return ", ".join(parts)

    def time(self, algorithm: str) -> str:
        """Return "direct 20 us" for an algorithm, or its name alone if it has no time."""
        if algorithm not in self.microseconds:
            return algorithm
        time = self.microseconds[algorithm]
        return f"{algorithm} {time:.0f} us" if time < 1000 else f"{algorithm} {time / 1000:.3g} ms"

    def __str__(self) -> str:
        others = [self.time(name) for name in self.microseconds if name not in (self.chosen, self.planned)]
        rules = [f"rules: {self.time(self.planned)}"] if self.planned != self.chosen else ["as the rules"]
        return f"{self.call()}: {self.time(self.chosen)} ({'; '.join(rules + others)})"


class Choices(tuple[Choice, ...]):
    """The choices of this process. ``str`` and ``repr`` show a table with the times of all candidates."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self:
            return "no choices: no convolution ran within fastconv.tune()"
        rows = [("call", "chosen", "rules", "others")]
        for choice in self:
            others = [choice.time(name) for name in choice.microseconds if name not in (choice.chosen, choice.planned)]
            rules = "the same" if choice.planned == choice.chosen else choice.time(choice.planned)
            rows.append((choice.call(), choice.time(choice.chosen), rules, ", ".join(others)))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows)

    __str__ = __repr__


def _by(sizes: tuple[int, ...]) -> str:
    """Return "3x5", or "3" for two equal sizes."""
    return str(sizes[0]) if len(sizes) == 2 and sizes[0] == sizes[1] else "x".join(map(str, sizes))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def choices() -> Choices:
    """Return the choices of this process, in the order in which they were made or loaded. Print it to see a table.

    Example:
        >>> choices()
        no choices: no convolution ran within fastconv.tune()
    """
    return Choices(
        Choice(**{name.replace("pass", "pass_"): _tuples(value) for name, value in entry.items()})
        for entry in _C.tuned_choices()
    )


def clear() -> None:
    """Forget all choices. fastconv's rules decide again."""
    _C.forget_tuned_choices()
    with _lock:
        _logged.clear()


def machine() -> dict[str, str]:
    """Return the machine of a file of choices: the processor, the ISA level and the versions."""
    return {
        "cpu": cpu_model(),
        "cpu_level": _C.cpu_capability(),
        "fastconv": __version__,
        "torch": torch.__version__,
    }


def save(path: str | os.PathLike[str]) -> int:
    """Write the choices of this process to a JSON file, for :func:`load` or ``FASTCONV_TUNING``.

    An earlier file of choices is replaced.

    Returns:
        The number of choices.

    Raises:
        TuningError: the file cannot be written, or it exists and is not a file of choices.
    """
    target = Path(path)
    if target.exists():
        try:
            _entries(target)
        except TuningError as error:
            if not isinstance(error, OtherMachineError):
                raise TuningError(f"fastconv: {target} exists and is not a file of choices, so it is kept") from error
    entries = _C.tuned_choices()
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    head = json.dumps({**FORMAT, "machine": machine()})[:-1]
    written = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        written.write_text(f'{head}, "choices": [\n  {lines}\n]}}\n', encoding="utf-8")
        written.replace(target)
    except OSError as error:
        written.unlink(missing_ok=True)
        raise TuningError(f"fastconv: cannot write {target}: {error.strerror or error}") from error
    return len(entries)


def load(path: str | os.PathLike[str]) -> int:
    """Add the choices of a file that :func:`save` wrote. They replace those for the same calls.

    Returns:
        The number of choices in the file.

    Raises:
        TuningError: the file cannot be read, is damaged, or belongs to another processor, ISA level or version of
            fastconv or torch. No choice is added then.
    """
    source = Path(path)
    entries = _entries(source)
    try:
        _C.restore_tuned_choices(entries)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TuningError(f"fastconv: {source} is damaged: an invalid choice: {text}") from error
    logger.info("%d choices loaded from %s", len(entries), source)
    with _lock:
        _logged.update(_key(choice) for choice in choices())
    return len(entries)


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the choices in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TuningError(f"fastconv: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise TuningError(f"fastconv: {path} is damaged, or not a file of fastconv.tuning.save: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT["format"]:
        raise TuningError(f"fastconv: {path} is not a file of fastconv.tuning.save")
    if content.get("version") != FORMAT["version"]:
        raise OtherMachineError(
            f"fastconv: {path} has version {content.get('version')!r} of the format, and this fastconv reads version "
            f"{FORMAT['version']}. Tune again."
        )
    recorded, here = content.get("machine"), machine()
    if not isinstance(recorded, dict):
        raise TuningError(f"fastconv: {path} is damaged: it does not name its machine")
    different = [f"{name} {recorded.get(name)!r} instead of {here[name]!r}" for name in here
                 if recorded.get(name) != here[name]]  # fmt: skip
    if different:
        raise OtherMachineError(f"fastconv: {path} is for {', '.join(different)}. Tune again.")
    entries = content.get("choices")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TuningError(f"fastconv: {path} is damaged: it has no list of choices")
    return entries


def load_from_environment() -> None:
    """Load the file that ``FASTCONV_TUNING`` names, if it is set.

    A file of another machine or version gives a warning and is not used: the program is correct without it.

    Raises:
        TuningError: the file cannot be read or is damaged.
    """
    path = environment.tuning_file()
    if path is None:
        return
    try:
        load(path)
    except OtherMachineError as error:
        warnings.warn(f"{error} (FASTCONV_TUNING is ignored)", stacklevel=2)
    except TuningError as error:
        text = str(error).removeprefix("fastconv: ")
        raise TuningError(f"fastconv: FASTCONV_TUNING: {text} (empty or unset: no file)") from error


# ---- logging --------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
#: The choices that were logged or loaded.
_logged: set[str] = set()


def _key(choice: Choice) -> str:
    return repr([getattr(choice, field.name) for field in fields(choice) if field.name != "microseconds"])


def _log_new_choices() -> None:
    """Log each new choice at INFO, once."""
    if not logger.isEnabledFor(logging.INFO):
        return
    with _lock:
        for choice in choices():
            if _key(choice) not in _logged:
                _logged.add(_key(choice))
                logger.info("%s", choice)
