"""``fastconv export``."""

from pathlib import Path
from typing import Annotated

import typer

from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli.options import CheckpointArgument, Format, path_option
from fastconv.classifier.errors import UserError
from fastconv.classifier.export import SUFFIXES, write


def export(
    checkpoint: CheckpointArgument,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="safetensors, torch: the weights only; torch is a state_dict that torch.load reads."
            " pt2, onnx: the whole network, for torch.export.load and for ONNX runtimes.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        path_option(
            "--output", "The file to write. Default: model.safetensors, .pt, .pt2 or .onnx beside the checkpoint."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the output file even if it is not an export in this format.")
    ] = False,
) -> None:
    """Write a checkpoint's network as a file that other programs can read without fastconv."""
    saved = load(checkpoint)
    if output is None:
        output = checkpoint.with_name(f"model{SUFFIXES[format.value]}")
    if output.exists() and output.samefile(checkpoint):
        raise UserError(f"--output is the checkpoint itself: {output}")
    size = write(saved, format.value, output, force)
    print(f"wrote {output}, {size:,} bytes")
