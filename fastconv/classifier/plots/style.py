"""Figures, colours, and the shortening of names, for all pictures."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastconv.classifier.arrays import as_tensor
from fastconv.classifier.errors import printable
from fastconv.classifier.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

_DPI = 150


@dataclass(frozen=True)
class Palette:
    """The colours on a background. ``ink`` is the colour map of grey images, from 0 to 1.

    ``sequential`` and ``diverging`` are the colours of a scale from its lowest to its highest value. ``on_sequential``
    are the colours of text on its low values, on its high values, and of a text that matters less. ``gap`` separates
    cells of the scale.
    """

    right: str
    wrong: str
    other: str
    training: str
    validation: str
    faint: str
    grid: str
    ink: str
    sequential: str | tuple[str, ...]
    diverging: str | tuple[str, ...]
    on_sequential: tuple[str, str, str]
    gap: str


LIGHT = Palette(
    "tab:blue", "tab:red", "0.65", "tab:blue", "tab:orange", "0.4", "0.9", "gray_r", "Blues", "RdBu_r",
    ("0.1", "white", "0.75"), "white",
)  # fmt: skip
DARK = Palette(
    "#63aee8", "#ff7b72", "0.45", "#63aee8", "#ffab5e", "0.7", "0.3", "gray",
    ("#1b222b", "#1f77b4", "#cfe6fb"), ("#63aee8", "#22272e", "#ff7b72"),
    ("0.9", "black", "0.4"), "0.25",
)  # fmt: skip
#: The colours of correct and wrong predictions on a light background.
RIGHT, WRONG, FAINT = LIGHT.right, LIGHT.wrong, LIGHT.faint

_DARK_SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e3e6ea"),
    "axes.edgecolor": "#a2abb5",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
}


def palette() -> Palette:
    """Return the colours for matplotlib's current style, which is dark if its text is light."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb

    return DARK if sum(to_rgb(rcParams["text.color"])) > 1.5 else LIGHT


@contextlib.contextmanager
def dark() -> Iterator[None]:
    """Draw figures with light text on a transparent background, for a dark page."""
    from matplotlib import rc_context

    with rc_context(_DARK_SETTINGS):
        yield


def colour_map(colours: str | tuple[str, ...]) -> Any:
    """Return a colour map for the name of one, or for the colours from its lowest to its highest value."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return colormaps[colours] if isinstance(colours, str) else LinearSegmentedColormap.from_list("scale", colours)


@functools.cache
def _figure_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows, also before the program has imported pyplot."""

        def _repr_png_(self) -> bytes:
            return png(self)

    return NotebookFigure


def new_figure(width: float, height: float) -> Figure:
    """Create a figure of this size in inches, with a layout in which nothing overlaps."""
    # Unlike pyplot, these classes have no global state and never need a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_class()(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_or_part(ax: Any, width: float, height: float) -> FigureBase:
    """Return a new figure of this size in inches. If ``ax`` is given, return the part of its figure that it fills.

    Args:
        ax: axes, which are removed, or a figure or a subfigure, which is drawn into. ``None`` makes a new figure.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    if ax is None:
        return new_figure(width, height)
    if isinstance(ax, FigureBase):
        return ax
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be axes, a subfigure or a figure of matplotlib, not {type(ax).__name__}")
    place, parent = ax.get_subplotspec(), ax.figure
    if place is None:
        raise ValueError("this picture has several parts: pass axes that subplots() made, or a subfigure")
    ax.remove()
    return parent.add_subfigure(place)


def axes_or_new(ax: Any, width: float, height: float) -> Any:
    """Return ``ax``, or the axes of a new figure of this size in inches."""
    from matplotlib.axes import Axes

    return ax if isinstance(ax, Axes) else figure_or_part(ax, width, height).subplots()


def finished(part: FigureBase, path: str | Path | None) -> Figure:
    """Write the figure of ``part`` to ``path``, unless that is ``None``, and return it.

    The ending of ``path`` is the format: .png, .pdf, .svg and others. An earlier file is replaced.

    Raises:
        ValueError: if matplotlib does not know the format.
        OutputError: if the file cannot be written.
    """
    figure = part
    while figure is not figure.figure:  # the figure of a subfigure is the one around it
        figure = figure.figure
    if path is not None:
        path = Path(path)
        write_atomically(path, _encoded(figure, path.suffix[1:].lower() or "png"))
    return figure  # type: ignore[return-value]


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG file."""
    return _encoded(figure, "png")


def _encoded(figure: Any, format: str) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes, so no warning is needed.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format=format)
    return file.getvalue()


def drawable(images: Any) -> Tensor:
    """Return images as floats in [0, 1] of shape (N, C, H, W), where C is 1 or 3 if possible.

    Args:
        images: arrays or tensors (N, H, W), (N, C, H, W) or (N, H, W, C). uint8 values are divided by 255.
    """
    images = as_tensor(images).cpu()
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4:
        raise ValueError(f"images must be (N, H, W), (N, C, H, W) or (N, H, W, C), not {tuple(images.shape)}")
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def classes_of(labels: Any) -> Tensor:
    """Return labels (N,), int64. Rows (N, classes), which may be one-hot or probabilities, give their largest entry."""
    labels = as_tensor(labels).cpu()
    if labels.dim() == 2 and labels.shape[1] > 1:
        return labels.to(torch.float64).argmax(1)
    return labels.reshape(-1).long()


def probabilities_of(probabilities: Any, count: int, classes: int) -> Tensor:
    """Return probabilities (N, classes) as a float tensor."""
    values = as_tensor(probabilities).cpu().float()
    if tuple(values.shape) != (count, classes):
        raise ValueError(f"probabilities must be ({count}, {classes}), images by classes, not {tuple(values.shape)}")
    return values


def names_of(class_names: Sequence[str] | None, classes: int) -> Sequence[str]:
    """Return ``class_names``, or the numbers of the classes if there are none."""
    return [str(label) for label in range(classes)] if class_names is None else class_names


def colour_legend(part: Any, what: dict[str, str]) -> None:
    """Draw a legend below ``part``, a figure or a subfigure: a square of each colour, and what it means."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=label) for label, colour in what.items()]
    part.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)


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
    """Draw ``image``: (3, H, W) in colour, and any other (C, H, W) as its mean over C.

    Means are drawn dark on light or, in a dark style, light on dark.
    """
    if len(image) == 3:
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axes.imshow(image.mean(0).numpy(), cmap=palette().ink, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def pad(part: Any, width: float, height: float) -> None:
    """Set the space around the axes of a new figure, in inches. A part of a figure keeps the spacing of the figure."""
    if isinstance(part, _figure_class()):
        part.get_layout_engine().set(w_pad=width, h_pad=height)  # type: ignore[union-attr, call-arg]


def hide(axes: Any) -> None:
    """Hide the unused axes of a grid."""
    for unused in axes:
        unused.set_axis_off()
