"""The worked job: train, evaluate and look at a small CNN on handwritten digits and other small images.

``data`` reads the images, ``augment`` moves them a little, ``training`` fits a network to them, ``checkpoint`` keeps
it, ``export`` writes it for other programs, ``runs`` keeps a training that may be interrupted, ``files`` writes
results, ``images`` reads image files for prediction, ``plots`` draws, ``report`` puts the figures and plots of a run on
a page, ``bench`` times fastconv against PyTorch, ``progress`` shows how far training is, and ``cli`` is the command
``fastconv``.
"""


class UserError(Exception):
    """A mistake that the user can mend; the command prints it in one line and exits with code 2."""


class UserInterrupt(Exception):
    """The user stopped what was under way, and it was kept; the command prints where, and exits with code 130."""
