"""Furo in Chinese: its buttons, labels and notes. No catalog of translations has them.

docs/zh/theme.json has each text as it is written in Furo's templates, or in the parts of a page that Furo and MyST-NB
generate. docs/check.py finds the texts that were not translated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.ext import Extension
from sphinx.application import Sphinx

TABLE: dict[str, str] = json.loads((Path(__file__).parents[1] / "zh" / "theme.json").read_text(encoding="utf-8"))
#: The parts of a page that are generated without a template.
GENERATED = ("body", "furo_navigation_tree")


def translated(text: str) -> str:
    for english, chinese in TABLE.items():
        text = text.replace(english, chinese)
    return text


class Translation(Extension):
    """Translates each template when Jinja loads it."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return translated(source)


def translate_templates(app: Sphinx) -> None:
    app.builder.templates.environment.add_extension(Translation)  # type: ignore[attr-defined]


def translate_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    for part in GENERATED:
        if context.get(part):
            context[part] = translated(context[part])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", translate_templates)
    app.connect("html-page-context", translate_page, priority=900)  # after Furo
    return {"parallel_read_safe": True, "parallel_write_safe": True}
