"""A training that shows its progress and calls callbacks."""

from collections.abc import Callable

from fastconv.classifier.callbacks import Callbacks
from fastconv.classifier.fit import Totals, Training
from fastconv.classifier.history import EpochResult
from fastconv.classifier.progress import Progress


def run(training: Training, callbacks: Callbacks, progress: Progress, stopped: Callable[[], bool]) -> None:
    """Run ``training`` to its end, or until ``stopped`` returns true after a step or an epoch.

    If it is stopped within an epoch, that epoch ends with its validation, as in Keras.
    """

    def begin(epoch: int) -> None:
        progress.epoch_begun(epoch)
        callbacks.call("on_epoch_begin", epoch - 1, {})

    def on_step(epoch: int, totals: Totals) -> None:
        progress.step(epoch, totals)
        if callbacks.watches_batches and totals.own:
            logs = dict(zip(("loss", "accuracy"), totals.means(), strict=True))
            callbacks.call("on_train_batch_end", training.steps - 1, logs)
        if stopped():
            training.stop()

    def on_epoch(result: EpochResult) -> None:
        progress.epoch_done(result)
        callbacks.epoch_end(result)
        if stopped():
            training.stop()
        elif not training.done:
            begin(result.epoch + 1)

    callbacks.call("on_train_begin", {})
    begin(1)
    training.run(on_step, on_epoch)
    if training.steps:
        training.finish_epoch(on_epoch)
    callbacks.call("on_train_end", training.history[-1].logs())
