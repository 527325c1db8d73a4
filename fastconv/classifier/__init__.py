"""Train, evaluate and inspect a small CNN on handwritten digits and other small images.

Training: ``data`` reads the images, ``augment`` changes them at random, ``config`` has the settings and ``networks``
the networks. ``fit`` is the training loop; it uses ``batches``, ``device``, ``cuda_graph``, ``distributed``,
``evaluation``, ``history``, ``training_state`` and ``objective``, which chooses among ``losses``, ``optimizers`` and
``metrics``.

``estimator`` wraps it in a class with the methods compile, fit, evaluate and predict. It uses ``arrays`` and ``inputs``
for what a program passes, ``names`` for spellings, ``callbacks``, ``progress`` and ``watched`` for what happens during
the training, ``saving`` for files and ``summary`` for the table of layers.

Results: ``checkpoint`` stores a network, and ``export`` writes it for other programs. ``runs`` manages the folder of a
run. ``schemas`` describes these files, and ``files`` reads and writes them. ``plots`` draws, ``report`` writes a page
about a run, and ``bench`` times fastconv against PyTorch.

``cli`` is the command ``fastconv``, and ``errors`` has the errors that it reports.
"""

from fastconv.classifier.callbacks import Callback, EarlyStopping, ModelCheckpoint
from fastconv.classifier.estimator import Classifier
from fastconv.classifier.history import History

__all__ = ["Callback", "Classifier", "EarlyStopping", "History", "ModelCheckpoint"]
