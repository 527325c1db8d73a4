"""Pictures of a network: the kernels of its first layer, and its feature maps for an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastconv.classifier.arrays import as_tensor
from fastconv.classifier.plots.style import (
    colour_map,
    drawable,
    drawn,
    figure_or_part,
    finished,
    hide,
    palette,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_FILTERS = 64
_MAX_MAPS = 16
_COLUMNS = 8


def filters(weight: Any, title: str | None = None, *, ax: Any = None, path: str | Path | None = None) -> Figure:
    """Draw up to 64 kernels of a first layer on a common scale.

    For grey images, red is positive, blue is negative, and white is 0 (nearly black in a dark style). For RGB images,
    kernels are drawn in colour, and grey is 0. For other numbers of channels, the mean over the channels is drawn.

    Args:
        weight: (K, C, R, S), or a classifier or a network, whose first convolution is drawn.
        title: a line above the kernels. ``None`` gives their number and size.
        ax: axes in whose place the kernels are drawn, or a subfigure. ``None`` makes a new figure.
        path: a file to write, such as filters.png or filters.pdf.

    Raises:
        ValueError: if the network has no convolution, or the weight is not one.
    """
    weight = _first_weight(weight) if _is_network(weight) else as_tensor(weight)
    weight = weight.detach().float().cpu()
    if weight.dim() != 4:
        raise ValueError(f"the weight of a convolution is (K, C, R, S), not {tuple(weight.shape)}")
    K, C = weight.shape[:2]
    shown = weight[:_MAX_FILTERS]
    columns = min(_COLUMNS, K)
    rows = math.ceil(len(shown) / columns)
    figure = figure_or_part(ax, max(0.75 * columns, 2.4) + (0 if C == 3 else 0.9), 0.75 * rows + 0.7)
    colours = palette()
    if title is None:
        title = _of(len(shown), K, "kernel") + f" of {weight.shape[2]} × {weight.shape[3]}"
    if title:
        figure.suptitle(drawn(title), fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    limit = (shown if C == 3 else shown.mean(1)).abs().max().item() or 1.0
    image: Any = None
    for index, (place, kernel) in enumerate(zip(axes.ravel(), shown, strict=False)):
        if C == 3:
            place.imshow((0.5 + kernel.permute(1, 2, 0) / (2 * limit)).numpy())
        else:
            image = place.imshow(kernel.mean(0).numpy(), cmap=colour_map(colours.diverging), vmin=-limit, vmax=limit)
        place.set(xticks=[], yticks=[])
        place.set_title(str(index), fontsize=7, color=colours.faint, pad=2)
    hide(axes.ravel()[len(shown) :])
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=min(1, 2.5 / rows) if rows > 2 else 1)
        bar.set_label("weight" if C == 1 else f"mean weight of {C} channels", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return finished(figure, path)


def feature_maps(
    model: Any, image: Any, title: str | None = None, *, ax: Any = None, path: str | Path | None = None
) -> Figure:
    """Draw ``image``, and the first 16 channels of each convolution's output for it.

    If a convolution is fused with its ReLU and pooling, as in :class:`fastconv.nn.ConvReLUMaxPool2d`, the output of the
    fused layer is drawn.

    Args:
        model: a classifier, or a network whose children run in sequence, such as one of
            :func:`fastconv.builder.build_cnn`.
        image: (C, H, W), (H, W, C) or (H, W), also as a batch of one. uint8 values are divided by 255.
        title: a line above the image. ``None`` gives its size.
        ax: axes in whose place the maps are drawn, or a subfigure. ``None`` makes a new figure.
        path: a file to write, such as maps.png or maps.pdf.

    Raises:
        ValueError: if no child has a convolution, or ``image`` is not one image.
    """
    model = _network(model)
    image = as_tensor(image)
    if image.dim() not in (2, 3) and image.shape[:-3] != (1,):
        raise ValueError(f"one image (C, H, W), (H, W, C) or (H, W) is expected, not {tuple(image.shape)}")
    (image,) = drawable(image if image.dim() == 4 else image[None])
    outputs = _outputs(model, image)
    heights = [1.5] + [0.62 * math.ceil(len(maps[:_MAX_MAPS]) / _COLUMNS) + 0.45 for _, maps in outputs]
    figure = figure_or_part(ax, 6.4, sum(heights))
    parts = figure.subfigures(1 + len(outputs), 1, height_ratios=heights, squeeze=False).ravel()
    show_image(parts[0].subplots(), image)
    first = f"image of {image.shape[1]} × {image.shape[2]}" if title is None else drawn(title)
    parts[0].suptitle(first, fontsize=10)
    for part, (name, maps) in zip(parts[1:], outputs, strict=True):
        shown = maps[:_MAX_MAPS]
        rows = math.ceil(len(shown) / _COLUMNS)
        axes = part.subplots(rows, _COLUMNS, squeeze=False)
        part.suptitle(f"{name}: {_of(len(shown), len(maps), 'map')} of {maps.shape[1]} × {maps.shape[2]}", fontsize=10)
        low, high = min(shown.min().item(), 0), max(shown.max().item(), 0) or 1.0
        for place, channel in zip(axes.ravel(), shown, strict=False):
            picture = place.imshow(channel.numpy(), cmap="viridis", vmin=low, vmax=high)
            place.set(xticks=[], yticks=[])
        hide(axes.ravel()[len(shown) :])
        bar = part.colorbar(picture, ax=axes, shrink=0.9)
        bar.set_label("activation", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return finished(figure, path)


def _is_network(value: Any) -> bool:
    """Return whether ``value`` is a module or a classifier, which has one."""
    return isinstance(value, nn.Module) or isinstance(getattr(value, "model", None), nn.Module)


def _network(value: Any) -> nn.Module:
    return value if isinstance(value, nn.Module) else value.model


def _first_weight(value: Any) -> Tensor:
    found = next((module for module in _network(value).modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise ValueError("the network has no convolution")
    return found.weight


def _outputs(model: nn.Module, image: Tensor) -> list[tuple[str, Tensor]]:
    """Return the names of the convolutions and their outputs for ``image``, (K, P, Q)."""
    found: list[tuple[str, Tensor]] = []
    hooks = []
    for name, child in model.named_children():
        if any(isinstance(module, nn.Conv2d) for module in child.modules()):

            def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                found.append((name, output[0].float().cpu()))

            hooks.append(child.register_forward_hook(keep))
    if not hooks:
        raise ValueError("the network has no convolution")
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(image[None].to(next(model.parameters(), image)))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def _of(shown: int, all: int, what: str) -> str:
    """Return the number of parts that are shown: "32 kernels", "first 16 of 32 maps"."""
    what += "s" if all != 1 else ""
    return f"{all} {what}" if shown == all else f"first {shown} of {all} {what}"
