"""The report of a conversion, as text and in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

from torch import nn

import fastconv
from fastconv.conversion.report import Line, Report


class Table(HTMLParser):
    """The text of each cell of a page's tables, row by row. Fails on tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_report_shows_itself_as_text() -> None:
    report = fastconv.conversion_report(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)))
    assert repr(report) == str(report)
    assert repr(report).startswith("layers: ")


def test_a_report_shows_every_layer_in_a_notebook() -> None:
    report = fastconv.conversion_report(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)))
    rows = Table(report._repr_html_()).rows
    assert rows[0] == ["", "layer", "becomes", "why"]
    assert rows[1:] == [list(line.cells()) for line in report.lines]
    assert report.summary() in report._repr_html_()


def test_names_of_layers_are_escaped_in_html() -> None:
    report = Report([Line("<script>", "Conv2d", "left", 'a & b < "c"')])
    page = report._repr_html_()
    assert "<script>" not in page
    assert Table(page).rows[1] == ["<script>", "Conv2d", "left", 'a & b < "c"']


def test_a_model_without_layers_to_convert_has_an_empty_report() -> None:
    report = fastconv.conversion_report(nn.Identity())
    assert repr(report) == "layers: 0 converted, 0 fused, 0 left to PyTorch"
    assert len(Table(report._repr_html_()).rows) == 1
