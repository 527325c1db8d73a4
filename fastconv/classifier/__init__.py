"""Train, evaluate and inspect a small CNN on handwritten digits and other small images.

Training: ``data`` reads the images, ``augment`` changes them at random, ``config`` has the settings and ``networks``
the networks. ``fit`` is the training loop; it uses ``device``, ``cuda_graph``, ``distributed``, ``evaluation`` and
``training_state``. ``estimator`` wraps it in a class with the methods compile, fit, evaluate and predict.

Results: ``checkpoint`` stores a network, and ``export`` writes it for other programs. ``runs`` manages the folder of a
run. ``schemas`` describes these files, and ``files`` reads and writes them. ``plots`` draws, ``report`` writes a page
about a run, and ``bench`` times fastconv against PyTorch.

``cli`` is the command ``fastconv``, and ``errors`` has the errors that it reports.
"""

from fastconv.classifier.estimator import Classifier

__all__ = ["Classifier"]
