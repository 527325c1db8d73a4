"""``fastconv export``."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from fastconv.classifier.choices import SUFFIXES
from fastconv.classifier.cli import options
from fastconv.classifier.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Export(options.Notes, options.ChosenRun):
    """The options of ``fastconv export``."""

    format: str = options.choice(
        "--format",
        SUFFIXES,
        "safetensors: the weights. torch: the weights as a state_dict, for torch.load."
        " pt2: the network, for torch.export.load. onnx: the network, for ONNX runtimes.",
        MISSING,
        show_default=False,
    )
    output: Path | None = options.path_option(
        "--output",
        "The file to write.",
        show_default="model.safetensors, .pt, .pt2 or .onnx beside the checkpoint",
    )
    force: bool = options.flag("--force", help="Overwrite the output file even if it is not an export in this format.")


def export(given: Export) -> None:
    """Write a trained network as a file that other programs can read without fastconv."""
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer
    from fastconv.classifier.export import write

    printer = Printer(given.quiet)
    found = inputs.load_run(given.run, printer)
    output = given.output
    if output is None:
        output = found.path.with_name(f"model{SUFFIXES[given.format]}")
    if output.exists() and output.samefile(found.path):
        raise UserError(f"--output is the checkpoint itself: {output}")
    size = write(found.saved, given.format, output, given.force)
    printer.note(f"wrote {output}, {size:,} bytes")
