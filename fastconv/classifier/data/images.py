"""Read image files. Digits are prepared like MNIST: 28 x 28, light on black. Other images are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastconv.classifier.data.dataset import CLASS_NAMES, IMAGE_SIZE
from fastconv.classifier.errors import UserError
from fastconv.classifier.files import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image

# In MNIST, each digit was scaled to fit a box of 20 x 20 pixels, and its centre of mass was moved to pixel (14, 14),
# counted from 0. (mnist5k's 4,000 training images have it at row 13.99 and column 14.00 on average.)
_DIGIT_SIZE = 20
# Pixels above this share of the strongest ink belong to the digit. Noise and paper texture are below it.
_INK = 0.25


class ImageError(UserError):
    """A file cannot be read as an image."""


def read_for(shape: tuple[int, int, int], class_names: tuple[str, ...], path: Path) -> Tensor:
    """Read an image file for a network of images of ``shape`` (C, H, W) and these classes.

    Digits of MNIST's shape are read by :func:`read_digit`, other images by :func:`read_scaled`.

    Returns:
        A tensor (1, C, H, W), float32 in [0, 1].
    """
    if (shape, class_names) == ((1, IMAGE_SIZE, IMAGE_SIZE), CLASS_NAMES):
        return read_digit(path)
    return read_scaled(path, shape)


def read_digit(path: Path) -> Tensor:
    """Read an image file of a digit, of any size and colour mode, as an image like MNIST's.

    Transparent parts become white, and colours become grey. If the border is brighter than the mean of the image, the
    digit is dark on a light background, and the image is inverted. An image of 28 x 28 pixels is not changed further.
    Any other is prepared as MNIST was: the background is subtracted, and the digit is cut out, scaled to a box of
    20 x 20 pixels, and centred by its mass.

    Returns:
        A tensor (1, 1, 28, 28), float32 in [0, 1].

    Raises:
        ImageError: if the file cannot be read, or Pillow does not recognise it as an image.
    """
    grey = _read_grey(path)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if np.median(border) > grey.mean():
        grey, border = 1 - grey, 1 - border
    if grey.shape != (IMAGE_SIZE, IMAGE_SIZE):
        grey = _prepare(grey, background=float(np.median(border)))
    return torch.from_numpy(grey.astype(np.float32)).reshape(1, 1, IMAGE_SIZE, IMAGE_SIZE)


def read_scaled(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read an image file scaled to ``shape`` (C, H, W): in grey if C is 1, in red, green and blue if C is 3.

    Returns:
        A tensor (1, C, H, W), float32 in [0, 1].

    Raises:
        ImageError: if the file cannot be read, or Pillow does not recognise it as an image.
    """
    from PIL import Image

    C, H, W = shape
    if C == 1:
        grey = Image.fromarray(_read_grey(path).astype(np.float32))
        pixels = np.array(grey.resize((W, H), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).view(1, 1, H, W)
    image = _read_colours(path)
    if image.mode.startswith(("I", "F")):  # a grey image of more than 8 bits, which Pillow's conversion would clip
        return read_scaled(path, (1, H, W)).expand(1, C, H, W)
    colours = image.convert("RGB").resize((W, H), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1).unsqueeze(0) / 255


def _read_grey(path: Path) -> NDArray[np.float64]:
    """Return the image's grey values in [0, 1]."""
    image = _read_colours(path)
    if image.mode.startswith(("I", "F")):
        # Pillow's conversion to 8 bits would clip. White is 65535, or 255 if no value is larger than 255.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return (values / (65535 if values.max() > 255 else 255)).clip(0, 1)
    return np.asarray(image.convert("L"), dtype=np.float64) / 255


def _read_colours(path: Path) -> Image:
    """Return the image, upright and on white, in RGBA. Images of more than 8 bits keep their mode."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        check_regular(path)
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                image.load()
                return image
            coloured = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image") from error
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError as error:
        raise ImageError(str(error)) from error
    except MemoryError as error:
        raise ImageError(f"cannot read {path}: not enough memory") from error
    except Exception as error:  # a damaged file can make Pillow raise any exception
        raise ImageError(f"cannot read {path}: {error or type(error).__name__}") from error


def _prepare(grey: NDArray[np.float64], background: float) -> NDArray[np.float64]:
    """Scale and centre the light digit in ``grey`` as in MNIST. An image without a digit becomes black."""
    from PIL import Image

    ink = (grey - background).clip(0)
    result = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    if ink.max() == 0:
        return result
    ink /= ink.max()
    rows, columns = np.nonzero(ink > _INK)
    digit = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = _DIGIT_SIZE / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    scaled = Image.fromarray(digit.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    digit = np.asarray(scaled, dtype=np.float64).clip(0, 1)
    top = _start(digit.sum(axis=1))
    left = _start(digit.sum(axis=0))
    result[top : top + height, left : left + width] = digit
    return result


def _start(mass: NDArray[np.float64]) -> int:
    """Return where a digit with this mass along an axis must start, so that its centre of mass is at pixel 14."""
    centre = (mass * np.arange(len(mass))).sum() / max(mass.sum(), 1e-9)
    return int(np.clip(round(IMAGE_SIZE / 2 - centre), 0, IMAGE_SIZE - len(mass)))
