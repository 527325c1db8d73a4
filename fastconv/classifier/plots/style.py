"""Figures, colours, and the shortening of names, for all pictures."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastconv.classifier.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT = "tab:blue"
WRONG = "tab:red"
OTHER = "0.65"
TRAINING = "tab:blue"
VALIDATION = "tab:orange"
FAINT = "0.4"
_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Create a figure of this size in inches, with a layout in which nothing overlaps."""
    # Unlike pyplot, these classes have no global state and never need a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes, so no warning is needed.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png")
    return file.getvalue()


def drawn(name: str, length: int = 100) -> str:
    """Return ``name`` as text for matplotlib: one line of at most ``length`` characters, with escaped dollar signs.

    A longer name is shortened in the middle, because the ends of similar names often differ.
    """
    name = " ".join(printable(name).split())
    if len(name) > length:
        tail = length // 3
        name = name[: length - 1 - tail].rstrip() + "…" + name[-tail:].lstrip()
    return name.replace("$", r"\$")


def drawn_names(names: Sequence[str], length: int) -> list[str]:
    """Apply :func:`drawn` to all names. Append the index to names that become equal when shortened."""
    short = [drawn(name, length) for name in names]
    count = Counter(short)
    tags = [f" ({index})" if count[name] > 1 else "" for index, name in enumerate(short)]
    return [drawn(name, length - len(tag)) + tag for name, tag in zip(names, tags, strict=True)]


def percent(share: float) -> str:
    """Return ``share`` as a percentage that is never rounded to 0 % or 100 %: 0.9996 is 99.96 %."""
    for digits in (0, 1, 2):
        text = f"{share:.{digits}%}"
        if 0 < float(text[:-1]) < 100 or share in (0, 1):
            return f"{text[:-1]} %"
    return "> 99.99 %" if share > 0.5 else "< 0.01 %"


def show_image(axes: Any, image: Tensor) -> None:
    """Draw ``image``: (1, H, W) dark on light, (3, H, W) in colour, and the mean over C for any other C."""
    if len(image) == 3:
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axes.imshow(image.mean(0).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def hide(axes: Any) -> None:
    """Hide the unused axes of a grid."""
    for unused in axes:
        unused.set_axis_off()
