"""The worked job: train, evaluate and look at a small CNN on handwritten digits and other small images.

Training: ``data`` reads the images, ``augment`` moves them a little, ``config`` is what can be chosen, ``training``
fits a network to them, ``distributed`` in several processes, ``classifier`` puts the textbook's verbs over it.

What comes of it: ``checkpoint`` keeps a network, ``export`` writes it for other programs, ``runs`` keeps a training
that may be interrupted, ``schemas`` says what these files hold, ``files`` reads and writes them, ``images`` reads image
files for prediction, ``plots`` draws, ``report`` puts the figures and plots of a run on a page.

The command ``fastconv``: ``cli``, its ``commands`` and their ``options``; ``train`` is the longest of them,
``progress`` shows how far that is, ``table`` prints; ``bench`` times fastconv against PyTorch, in processes that
``alternate``.
"""


def printable(text: str) -> str:
    """``text`` without the escapes by which Python carries file names that are not UTF-8; printing those fails."""
    return text.encode(errors="replace").decode()


class UserError(Exception):
    """A mistake that the user can mend; the command prints it in one line and exits with code 2."""


class UserInterrupt(Exception):
    """The user stopped what was under way, and it was kept; the command prints where.

    ``exit_code`` is what shells have for a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
