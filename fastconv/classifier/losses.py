"""Loss functions: those with a name, and those that a program passes to :meth:`Classifier.compile`."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastconv.classifier.names import choose, refuse_keras

#: A function of logits (N, classes) and labels (N,) that returns the mean loss, a tensor without dimensions.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Other names of the losses, as Keras and torch.nn spell them.
_ALIASES = {
    "crossentropy": "cross-entropy",
    "cross_entropy_loss": "cross-entropy",
    "categorical_crossentropy": "cross-entropy",
    "sparse_categorical_crossentropy": "cross-entropy",
    "mean_squared_error": "mse",
    "mse_loss": "mse",
}


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def _mse(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    classes = logits.shape[1]
    wanted = F.one_hot(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return F.mse_loss(logits.softmax(1), wanted)


#: The functions for the names in :data:`fastconv.classifier.config.LOSSES`.
LOSSES: dict[str, Callable[..., Tensor]] = {"cross-entropy": _cross_entropy, "mse": _mse}


def named(name: str, smoothing: float = 0.0) -> Loss:
    """Return the loss ``name``, one of :data:`LOSSES`, with this label smoothing."""
    return lambda logits, target: LOSSES[name](logits, target, smoothing)


def find(loss: Any, returns_logits: bool = True) -> str | Loss:
    """Return the name of ``loss`` in :data:`LOSSES`, or the function to call for any other loss.

    Args:
        loss: a name (also Keras's, in any spelling), a class or an instance of torch.nn, or a function of logits
            (N, classes) and integer labels (N,). ``nn.MSELoss`` means ``"mse"``.
        returns_logits: whether the network is known to return logits. ``nn.NLLLoss`` needs logarithms of probabilities.

    Raises:
        ValueError: if the name is unknown, or the loss does not fit the network.
        TypeError: if ``loss`` is neither a name nor can be called.

    Example::

        >>> find("sparse_categorical_crossentropy"), find(nn.MSELoss())
        ('cross-entropy', 'mse')
    """
    if isinstance(loss, str):
        return choose("loss", loss, LOSSES, _ALIASES, "or pass a function of logits and integer labels")
    refuse_keras("loss", loss, "give its name, such as 'categorical_crossentropy'")
    if inspect.isclass(loss):
        loss = loss()
    if not callable(loss):
        raise TypeError(f"a loss must be a name, a loss of torch.nn or a function, not {loss!r}")
    if getattr(loss, "reduction", "mean") == "none":
        raise ValueError(f"{loss!r} returns a loss for each image: leave out reduction='none'")
    if isinstance(loss, nn.MSELoss):
        if loss.reduction != "mean":
            raise ValueError(f"MSELoss is computed as the mean: leave out reduction={loss.reduction!r}")
        return "mse"
    if isinstance(loss, nn.NLLLoss) and returns_logits:
        raise ValueError("NLLLoss needs log-probabilities, but this network returns logits: use 'cross-entropy'")
    return _checked(loss)


def _checked(loss: Any) -> Loss:
    """Return a function that calls ``loss``. If the call fails, its error says which arguments ``loss`` gets."""

    def call(logits: Tensor, target: Tensor) -> Tensor:
        try:
            value = loss(logits, target)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise TypeError(
                f"the loss {loss!r} does not accept logits {tuple(logits.shape)} and integer labels"
                f" {tuple(target.shape)}: {error}"
            ) from error
        if not isinstance(value, Tensor) or value.dim() != 0:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the loss {loss!r} must return a tensor without dimensions (the mean), not {shape}")
        return value

    return call
