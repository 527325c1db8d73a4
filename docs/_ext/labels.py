"""The labels of pictures in Chinese.

The cells of the course are the same in both languages, so a page and its translation are executed once. Each picture is
then drawn twice: with the labels of its code, and with those of docs/zh/labels.json. The second drawing is one more
output of the cell. The Chinese build shows it in place of the first one (execution.py).

A key of labels.json is one line of a label. "{}" stands for a number, or for another key.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

#: The type of the additional output: JSON with the picture and the lines that labels.json does not have.
TYPE = "application/x-chinese-picture"
TABLE = Path(__file__).parents[1] / "zh" / "labels.json"
FONT = "Noto Sans SC"


@cache
def patterns() -> list[tuple[re.Pattern[str], str]]:
    table: dict[str, str] = json.loads(TABLE.read_text(encoding="utf-8"))
    return [(re.compile("(.+?)".join(map(re.escape, line.split("{}")))), found) for line, found in table.items()]


def translated(text: str, missing: set[str]) -> str:
    """Translate each line that has a letter. The lines that have no translation are added to ``missing``."""
    return "\n".join(_translated_line(line, missing) for line in text.split("\n"))


def _translated_line(line: str, missing: set[str]) -> str:
    if not re.search("[A-Za-z]", line) or line.startswith("$"):  # a number, or a formula
        return line
    for pattern, chinese in patterns():
        match = pattern.fullmatch(line)
        if match:
            return chinese.format(*(_translated_line(part, missing) for part in match.groups()))
    if not re.search("[\u4e00-\u9fff]", line):  # otherwise it is translated already
        missing.add(line)
    return line


@contextmanager
def chinese(missing: set[str]) -> Iterator[None]:
    """Let matplotlib translate every text that it draws. Labels of ticks are made while it draws."""
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.text import Text

    package = find_spec("zhplot")  # its font is used, nothing else
    if package is None or package.origin is None:
        raise ModuleNotFoundError("Chinese labels need the font of the package zhplot, of the extra docs")
    if FONT not in font_manager.fontManager.get_font_names():
        font_manager.fontManager.addfont(Path(package.origin).parent / "fonts" / "NotoSansSC-Regular.ttf")
    original = Text.set_text

    def set_text(text: Any, content: Any) -> None:
        original(text, translated("" if content is None else str(content), missing))

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # the font has no bold letters
    fonts = [FONT, *mpl.rcParams["font.sans-serif"]]
    with mock.patch.object(Text, "set_text", set_text), mpl.rc_context({"font.sans-serif": fonts}):
        yield


def chinese_picture(figure: Any) -> str:
    """Draw a figure with Chinese labels, and return the value of the additional output."""
    from IPython.core.pylabtools import print_figure
    from matplotlib.text import Text

    texts = {text: text.get_text() for text in figure.findobj(Text)}
    missing: set[str] = set()
    with chinese(missing):
        for text, content in texts.items():
            text.set_text(content)
        picture = print_figure(figure, "png", base64=True)
    for text, content in texts.items():
        text.set_text(content)
    return json.dumps({"picture": picture, "missing": sorted(missing)})


def draw_both() -> None:
    """Let this kernel give the additional output with each figure."""
    from IPython import get_ipython  # type: ignore[attr-defined]
    from IPython.core.formatters import BaseFormatter

    class Formatter(BaseFormatter):
        # matplotlib's own set-up removes the functions that were registered for figures, so this is a method.
        def __call__(self, shown: Any) -> str | None:
            module = sys.modules.get("matplotlib.figure")
            return chinese_picture(shown) if module and isinstance(shown, module.Figure) else None

    get_ipython().display_formatter.formatters[TYPE] = Formatter()
