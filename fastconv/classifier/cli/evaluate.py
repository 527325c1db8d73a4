"""``fastconv evaluate``."""

from fastconv.classifier import evaluation
from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli import options
from fastconv.classifier.cli.progress import test_line


def evaluate(
    checkpoint: options.CheckpointArgument,
    dataset: options.SavedDataSetOption = None,
    data_dir: options.DataDirOption = None,
    threads: options.ThreadsOption = None,
    backend: options.BackendOption = options.Backend.fastconv,
) -> None:
    """Print the accuracy and the loss of a checkpoint on the test images."""
    options.set_threads(threads)
    saved = load(checkpoint)
    data = options.load_data_for(saved, dataset, data_dir)
    network = saved.build(backend.value)
    loss, accuracy = evaluation.evaluate(network, data.test_images, data.test_labels, saved.loss)
    print(test_line(loss, accuracy, len(data.test_images)))
