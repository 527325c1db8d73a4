"""The errors that the command reports in one line."""


class UserError(Exception):
    """A mistake that the user can correct. The command prints it in one line and exits with code 2."""


class UserInterrupt(Exception):
    """The user stopped a run, and its state was saved. The command prints how to continue.

    ``exit_code`` follows the convention of shells for a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def printable(text: str) -> str:
    """Return ``text`` with "?" in place of each byte of a file name that is not UTF-8. Such bytes cannot be printed."""
    return text.encode(errors="replace").decode()
