"""Directives that render the measurements of docs/data as tables, with the machine below each table.

    ```{claims} zen4
    ```

`claims` and `operators` read a file that benchmarks/publish.py wrote. `figures` reads a table of docs/data/tables.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data"
#: A cell of figures: "3.65", "x 1.65", "4.71 to 5.50".
NUMBER = re.compile(r"(x )?\d")

sys.path.append(str(ROOT / "benchmarks"))

import report  # noqa: E402


class Measured(SphinxDirective):
    """A table of measurements. The subclasses say where its rows come from."""

    required_arguments = 1

    def read(self, name: str) -> Any:
        path = DATA / f"{name}.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            raise self.error(f"there is no {path}")
        return json.loads(path.read_text())

    def content_of(self) -> tuple[list[str], list[list[str]], str]:
        """Return headings, rows, and the machine."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        headings, rows, machine = self.content_of()
        table = nodes.table(classes=["figures"])
        group = nodes.tgroup(cols=len(headings))
        table += group
        group.extend(nodes.colspec(colwidth=1) for _ in headings)
        head, body = nodes.thead(), nodes.tbody()
        group.extend([head, body])
        head += self.row(headings)
        body.extend(self.row(row) for row in rows)
        caption = nodes.paragraph("", machine, classes=["figures-caption"])
        return [nodes.container("", table, classes=["figures-box"]), caption]

    def row(self, cells: list[str]) -> nodes.row:
        row = nodes.row()
        for column, cell in enumerate(cells):
            entry = nodes.entry(classes=["number"] if column and NUMBER.match(cell) else [])
            if cell:
                inline, messages = self.parse_inline(cell.replace("->", "→"))
                entry += nodes.paragraph("", "", *inline, *messages)
            row += entry
        return row


class Published(Measured):
    """A table of a run of `make bench`."""

    table: int

    def content_of(self) -> tuple[list[str], list[list[str]], str]:
        published = self.read(self.arguments[0])
        headings, rows, machine = report.tables(published["runs"])[self.table]
        # The operators are in the first table. Their headings are those of the report.
        return headings, rows, f"{machine}. Milliseconds, unless another unit is named. Measured: {published['date']}."


class Operators(Published):
    table = 0


class Claims(Published):
    table = 1


class Figures(Measured):
    """A table of docs/data/tables.json."""

    def content_of(self) -> tuple[list[str], list[list[str]], str]:
        tables = self.read("tables")
        name = self.arguments[0]
        if name not in tables:
            raise self.error(f"docs/data/tables.json has no table {name!r}, only {', '.join(tables)}")
        found = tables[name]
        return found["columns"], found["rows"], found["machine"].rstrip(".") + "."


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("operators", Operators)
    app.add_directive("claims", Claims)
    app.add_directive("figures", Figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
