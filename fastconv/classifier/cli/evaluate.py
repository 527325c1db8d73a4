"""``fastconv evaluate``."""

from fastconv.classifier import evaluation
from fastconv.classifier.checkpoint import load
from fastconv.classifier.cli.options import (
    Backend,
    BackendOption,
    CheckpointArgument,
    DataDirOption,
    SavedDataSetOption,
    ThreadsOption,
    load_data_for,
    set_threads,
)
from fastconv.classifier.cli.progress import test_line


def evaluate(
    checkpoint: CheckpointArgument,
    dataset: SavedDataSetOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.fastconv,
) -> None:
    """Print the accuracy and the loss of a checkpoint on the test images."""
    set_threads(threads)
    saved = load(checkpoint)
    data = load_data_for(saved, dataset, data_dir)
    network = saved.build(backend.value)
    loss, accuracy = evaluation.evaluate(network, data.test_images, data.test_labels, saved.loss)
    print(test_line(loss, accuracy, len(data.test_images)))
