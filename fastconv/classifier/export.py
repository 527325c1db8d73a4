"""Export a checkpoint's network to a file that other programs can use without fastconv.

The formats safetensors and torch contain the weights only. The formats pt2 and onnx contain the whole network, built of
standard operators. Its outputs equal those of :meth:`Checkpoint.build` up to rounding.
"""

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastconv.classifier.checkpoint import Checkpoint, serialized
from fastconv.classifier.choices import SUFFIXES
from fastconv.classifier.config import MODELS
from fastconv.classifier.files import OutputError, check_output_folder, check_regular, write_atomically
from fastconv.version import __version__


def write(checkpoint: Checkpoint, format: str, path: Path, force: bool = False) -> int:
    """Write ``checkpoint`` to ``path`` in ``format``, one of :data:`SUFFIXES`, and return the size in bytes.

    Raises:
        OutputError: if ``path`` has another ending or cannot be written. Also if ``path`` is a file that this function
            did not write in the same format, unless ``force`` is true.
        ModuleNotFoundError: if the format needs a package of the extra ``export`` that is not installed.

    Example::

        >>> import tempfile
        >>> from fastconv.classifier.networks import build_model
        >>> checkpoint = Checkpoint("simple-cnn", build_model("simple-cnn").state_dict(), test_accuracy=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write(checkpoint, "torch", Path(folder, "model.pt"))
    """
    if path.suffix.lower() != SUFFIXES[format]:
        raise OutputError(f"--output must end in {SUFFIXES[format]} for --format {format}: {path}")
    if not force and path.exists() and not is_export(path, format):
        raise OutputError(f"{path} exists and is not an export in this format; --force overwrites it")
    check_output_folder(path.parent)
    content = _WRITERS[format](checkpoint)
    write_atomically(path, content)
    return len(content)


def metadata(checkpoint: Checkpoint, format: str) -> dict[str, str]:
    """Return the metadata of a file, each value as JSON. :func:`fastconv.builder.build_cnn` accepts ``layers``."""
    values = {
        "written_by": _mark(format),
        "fastconv": __version__,
        "model": checkpoint.model,
        "layers": MODELS.get(checkpoint.model, checkpoint.model),
        "shape": checkpoint.shape,
        "class_names": checkpoint.class_names,
        "test_accuracy": checkpoint.test_accuracy,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def _mark(format: str) -> str:
    """Return the text by which :func:`is_export` recognises a file."""
    return f"fastconv export --format {format}"


def is_export(path: Path, format: str) -> bool:
    """Return whether :func:`write` wrote the file: whether it contains the mark of the format."""
    check_regular(path)
    mark, before = _mark(format).encode(), b""
    try:
        with path.open("rb") as file:
            # No format compresses the mark. The file may be large, so read it in pieces.
            while piece := file.read(1 << 24):
                if mark in before + piece:
                    return True
                before = piece[-len(mark) :]
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    return False


def _network(checkpoint: Checkpoint) -> torch.nn.Module:
    """Build the network on PyTorch's operators, in float32 even if it was trained in float64."""
    return checkpoint.build("torch").float()


def _torch(checkpoint: Checkpoint) -> bytes:
    file = io.BytesIO(serialized(dict(_network(checkpoint).state_dict())))
    # The state_dict has no metadata, so the mark is the comment of the ZIP archive, which torch.load ignores.
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = _mark("torch").encode()
    return file.getvalue()


def _safetensors(checkpoint: Checkpoint) -> bytes:
    from safetensors.torch import save

    return save(dict(_network(checkpoint).state_dict()), metadata(checkpoint, "safetensors"))


def _example(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return arguments that make the batch size dynamic. torch's exporters treat a batch of one image as constant."""
    return {"args": (torch.zeros(2, *checkpoint.shape),), "dynamic_shapes": ({0: torch.export.Dim("batch")},)}


def _pt2(checkpoint: Checkpoint) -> bytes:
    program = torch.export.export(_network(checkpoint), **_example(checkpoint))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"fastconv.json": json.dumps(metadata(checkpoint, "pt2"))})
    return file.getvalue()


def _onnx(checkpoint: Checkpoint) -> bytes:
    import onnxscript  # noqa: F401  torch would report a missing onnxscript in several lines

    with _quiet_exporter():
        program = torch.onnx.export(
            _network(checkpoint),
            **_example(checkpoint),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(checkpoint, "onnx"))
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress warnings of torch.onnx about the missing torchvision and about its own deprecated calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


_WRITERS: dict[str, Callable[[Checkpoint], bytes]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "pt2": _pt2,
    "onnx": _onnx,
}
