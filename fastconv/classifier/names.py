"""Names that users type: spellings that mean the same, and suggestions for unknown names."""

import difflib
from collections.abc import Iterable, Mapping


def plain(name: str) -> str:
    """Return ``name`` in small letters, without "_", "-" and spaces.

    Example::

        >>> plain("Sparse_Categorical-Crossentropy")
        'sparsecategoricalcrossentropy'
    """
    return "".join(letter for letter in name.lower() if letter not in "_- ")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question about the known name that is most like ``name``. Return "" if none is like it.

    Example::

        >>> suggestion("adm", ["adam", "sgd"])
        "; did you mean 'adam'?"
    """
    similar = difflib.get_close_matches(name.lower(), list(known), 1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def choose(what: str, name: str, known: Iterable[str], aliases: Mapping[str, str], otherwise: str) -> str:
    """Return the name in ``known`` that ``name`` means, in any spelling of :func:`plain`.

    Args:
        what: the kind of the name, for the error.
        aliases: other names, and the known name of each.
        otherwise: the other possibilities, for the error.

    Example::

        >>> choose("optimizer", "SGD", ["adam", "sgd"], {}, "")
        'sgd'
    """
    names = list(known)
    spellings = {**dict(zip(names, names, strict=True)), **aliases}
    found = next((known for spelling, known in spellings.items() if plain(spelling) == plain(name)), None)
    if found is None:
        hint = suggestion(name, spellings)
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(names)}, {otherwise}{hint}")
    return found


def refuse_keras(what: str, value: object, remedy: str) -> None:
    """Refuse objects of Keras, because they work on Keras's models only."""
    kind = value if isinstance(value, type) else type(value)
    if any(base.__module__.split(".")[0] in ("keras", "tensorflow", "tf_keras") for base in kind.__mro__):
        raise TypeError(f"this {what} is Keras's, and works with Keras's models only: {remedy}")
