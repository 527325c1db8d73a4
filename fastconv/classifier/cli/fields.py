"""Options as the fields of a dataclass. Commands that share options inherit them, so that each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def command(run: Callable[[Options], None]) -> Callable[..., None]:
    """Return ``run`` as a function that has each field of its dataclass as a parameter, for typer.

    Example::

        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Greeting:
        ...     name: str = "you"
        >>> def greet(options: Greeting) -> None:
        ...     print("hello", options.name)
        >>> command(greet)(name="all")
        hello all
    """
    (options,) = (kind for name, kind in get_type_hints(run).items() if name != "return")
    hints = get_type_hints(options, include_extras=True)

    def with_parameters(**values: Any) -> None:
        run(options(**values))

    with_parameters.__name__, with_parameters.__doc__ = run.__name__, run.__doc__
    with_parameters.__annotations__ = {field.name: hints[field.name] for field in fields(options)}
    with_parameters.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
    )
    return with_parameters
