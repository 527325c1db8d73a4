"""The directive `command-options`: the options of the command `fastconv`, read from the command itself."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fastconv.classifier.cli.main import _click_command

#: The end of a help text: "[default: 5]".
NOTE = re.compile(r"\s*\[([^\[\]]*)\]$")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")


def paragraph(text: str) -> nodes.paragraph:
    """A paragraph in which the names of options are code."""
    parts = OPTION.split(text)  # text and options in turn
    return nodes.paragraph(
        "", "", *(nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts))
    )


class CommandOptions(SphinxDirective):
    """One section for each subcommand: what it does, how to call it, and its options by group."""

    def run(self) -> list[nodes.Node]:
        return [self.section(name, command) for name, command in _click_command().commands.items()]

    def section(self, name: str, command: Any) -> nodes.section:
        section = nodes.section(ids=[f"fastconv-{name}"], names=[f"fastconv {name}"])
        self.state.document.note_explicit_target(section)
        section += nodes.title("", "", nodes.literal("", f"fastconv {name}"))
        section.extend(paragraph(text) for text in (command.help or "").split("\n\n"))
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(["fastconv", name, *command.collect_usage_pieces(context)])
        section += nodes.literal_block(usage, usage, language="text")
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in command.get_params(context):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(context)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in groups.items():
            section += nodes.rubric("", title)
            section += self.definitions(name, records)
        if command.epilog:
            example = command.epilog.removeprefix("Example: ")
            section += nodes.rubric("", "Example")
            section += nodes.literal_block(example, example, language="text")
        return section

    def definitions(self, command: str, records: list[tuple[str, str]]) -> nodes.definition_list:
        listed = nodes.definition_list(classes=["options"])
        for spelling, text in records:
            identity = nodes.make_id(f"fastconv-{command}-{spelling.split()[-1] if ',' in spelling else spelling}")
            term = nodes.term("", "", nodes.literal("", spelling.strip()), ids=[identity])
            note = NOTE.search(text)
            body = nodes.definition("", paragraph(NOTE.sub("", text)))
            if note:
                kind, _, value = note[1].partition(": ")
                shown = value.removeprefix("(").removesuffix(")") if value else ""
                body += paragraph(f"{kind.capitalize()}: {shown}." if value else f"{kind.capitalize()}.")
            listed += nodes.definition_list_item("", term, body)
        return listed


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
