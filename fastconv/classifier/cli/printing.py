"""Printing of results, notes and tables."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastconv.classifier.errors import printable


class Printer:
    """Print results, notes and progress as ``--quiet`` and ``--json`` require.

    Results go to stdout, with ``--json`` as JSON. Notes and progress also go to stdout, but with ``--json`` to stderr.
    ``--quiet`` suppresses notes and progress.

    Attributes:
        console: where progress is printed.
    """

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.json = json
        self.console = Console(stderr=json, quiet=quiet)
        self._quiet = quiet

    def note(self, text: str) -> None:
        """Print a line that is not the result."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        self.console.file.flush()

    def aside(self, text: str) -> None:
        """Print a note on stderr, so that it never becomes part of the result."""
        if not self._quiet:
            print(printable(text), file=sys.stderr)

    def result(self, text: str, figures: Any) -> None:
        """Print the result of the command: ``text`` or, with ``--json``, ``figures``."""
        print(json.dumps(figures, indent=2) if self.json else text, flush=True)

    def result_table(self, header: Sequence[str], rows: Sequence[Sequence[str]], figures: Any) -> None:
        """Print the result as a table or, with ``--json``, as ``figures``."""
        if self.json:
            self.result("", figures)
        else:
            print_table(header, rows, Console())


def test_line(loss: float, accuracy: float, count: int) -> str:
    """Describe the results on ``count`` test images in a line."""
    return f"test accuracy {accuracy:.2%} ({round(accuracy * count)} of {count}), loss {loss:.4f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table on a terminal, and tab-separated lines elsewhere."""
    if console.quiet:
        return
    if not console.is_terminal:
        for row in (header, *rows):
            print(*row, sep="\t", file=console.file)
        return
    table = Table()
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
