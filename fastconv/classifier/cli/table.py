"""Print a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Print a table on a terminal, and tab-separated lines elsewhere."""
    console = Console() if console is None else console
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
