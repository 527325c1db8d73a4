"""``fastconv evaluate``."""

from dataclasses import dataclass

from fastconv.classifier.cli import options


@dataclass(frozen=True, kw_only=True)
class Evaluate(options.Result, options.Network, options.ChosenRun):
    """The options of ``fastconv evaluate``."""


def evaluate(given: Evaluate) -> None:
    """Print the accuracy and the loss of a trained network on the test images."""
    from fastconv.classifier import evaluation
    from fastconv.classifier.cli import inputs
    from fastconv.classifier.cli.printing import Printer, test_line

    printer = Printer(given.quiet, given.json)
    found = inputs.load_run(given.run, printer)
    network = inputs.build(found.saved, given)
    data = inputs.load_data_for(found.saved, given)
    loss, accuracy = evaluation.evaluate(network, data.test_images, data.test_labels, found.saved.loss)
    figures = {"checkpoint": str(found.path), "dataset": data.name, "images": len(data.test_images)}
    printer.result(
        test_line(loss, accuracy, len(data.test_images)), {**figures, "test_loss": loss, "test_accuracy": accuracy}
    )
