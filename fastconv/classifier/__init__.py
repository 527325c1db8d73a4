"""Train, evaluate and inspect a small CNN on handwritten digits and other small images.

Training: ``data`` reads the images, ``augment`` changes them at random, ``config`` has the settings and ``networks``
the networks. ``fit`` is the training loop; it uses ``batches``, ``device``, ``cuda_graph``, ``distributed``,
``evaluation``, ``history``, ``training_state`` and ``objective``, which chooses among ``losses``, ``optimizers`` and
``metrics``.

``estimator`` wraps it in a class with the methods compile, fit, evaluate and predict. ``arrays`` and ``inputs`` convert
the images and labels that a program passes, and ``names`` recognises spellings. During the training, ``watched`` calls
``callbacks`` and ``progress``. ``saving`` reads and writes files, and ``summary`` prints the table of layers.

Results: ``checkpoint`` stores a network, and ``export`` writes it for other programs. ``runs`` manages the folder of a
run. ``schemas`` describes these files, and ``files`` reads and writes them. ``plots`` draws, ``report`` writes a page
about a run, and ``bench`` times fastconv against PyTorch.

``cli`` is the command ``fastconv``, and ``errors`` has the errors that it reports. ``choices`` has names that both the
command and the other modules use, and ``latest`` finds the folders of runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastconv.classifier.callbacks import Callback, EarlyStopping, ModelCheckpoint
    from fastconv.classifier.estimator import Classifier
    from fastconv.classifier.history import History

__all__ = ["Callback", "Classifier", "EarlyStopping", "History", "ModelCheckpoint"]

_MODULES = {
    "Callback": "callbacks",
    "Classifier": "estimator",
    "EarlyStopping": "callbacks",
    "History": "history",
    "ModelCheckpoint": "callbacks",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is first used. The command imports this package, and its help must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
