"""``fastconv info``."""

import json
from dataclasses import dataclass

from fastconv.classifier.cli import options


@dataclass(frozen=True, kw_only=True)
class Info:
    """The options of ``fastconv info``."""

    json: bool = options.flag("--json", help="Print the result as JSON.")


def info(given: Info) -> None:
    """Print the versions, the CPU's instruction set in use, the threads, and how the extension was built."""
    import fastconv
    from fastconv import public

    print(json.dumps(public.configuration(), indent=2) if given.json else fastconv.show_config())
