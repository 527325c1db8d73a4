"""Options as the fields of a dataclass. Commands that share options inherit them, so that each is declared once."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def command(run: Callable[[Options], None]) -> Callable[..., None]:
    """Return ``run`` as a function that has each field of its dataclass as a parameter, for typer.

    Example::

        >>> from dataclasses import dataclass, field
        >>> import typer
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Greeting:
        ...     name: str = field(default="you", metadata={"parameter": typer.Option("--name")})
        >>> def greet(options: Greeting) -> None:
        ...     print("hello", options.name)
        >>> command(greet)(name="all")
        hello all
    """
    (options,) = (kind for name, kind in get_type_hints(run).items() if name != "return")
    hints = get_type_hints(options)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=Annotated[hints[field.name], field.metadata["parameter"]],
        )
        for field in fields(options)
    ]

    def with_parameters(**values: Any) -> None:
        run(options(**values))

    with_parameters.__name__, with_parameters.__doc__ = run.__name__, run.__doc__
    with_parameters.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    with_parameters.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_parameters
