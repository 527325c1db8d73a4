"""The worked job: train, evaluate and look at a small CNN on handwritten digits.

``data`` reads the images, ``training`` fits a network to them, ``checkpoint`` keeps it, ``files`` writes results,
``images`` reads image files for prediction, ``plots`` draws, ``progress`` shows how far training is, and ``cli`` is the
command ``fastconv``.
"""


class UserError(Exception):
    """A mistake that the user can mend; the command prints it in one line and exits with code 2."""
