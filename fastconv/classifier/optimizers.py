"""Optimizers: those with a name, and those that a program passes to :meth:`Classifier.compile`."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastconv import optim
from fastconv.classifier import cuda_graph
from fastconv.classifier.names import choose, refuse_keras

#: The learning rates of Keras. sgd has Nesterov momentum of 0.9 here, and rmsprop has a decay of 0.9, as in Keras.
DEFAULT_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 1e-2, "rmsprop": 1e-3}


def find(optimizer: Any) -> Any:
    """Return the name of ``optimizer`` in :data:`DEFAULT_RATES`. Return anything but a name unchanged.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if ``optimizer`` is Keras's, or cannot be used.

    Example::

        >>> find("RMSprop")
        'rmsprop'
    """
    if isinstance(optimizer, str):
        other = "or pass a class of torch.optim, such as torch.optim.NAdam"
        return choose("optimizer", optimizer, DEFAULT_RATES, {}, other)
    refuse_keras("optimizer", optimizer, "give its name, such as 'adam', or a class of torch.optim")
    if not isinstance(optimizer, Optimizer) and not callable(optimizer):
        raise TypeError(f"an optimizer must be a name, a class or an instance of torch.optim, not {optimizer!r}")
    return optimizer


def named(name: str, model: nn.Module, lr: float, backend: str = "fastconv") -> Optimizer:
    """Build the optimizer ``name`` for the parameters of ``model``, with PyTorch's fused kernel if there is one."""
    parameters = list(model.parameters())
    device = parameters[0].device
    recorded = cuda_graph.supports(device)
    # A CUDA graph reads the learning rate from a tensor.
    rate: Any = torch.tensor(lr, device=device) if recorded else lr
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, alpha=0.9, capturable=recorded)
    library = torch.optim if backend == "torch" else optim
    kind = library.AdamW if name == "adamw" else library.Adam
    return kind(parameters, lr=rate, fused=True, capturable=recorded)


def build(optimizer: Any, model: nn.Module, lr: float | None) -> Optimizer:
    """Build the optimizer that a program passes, and check that it updates ``model``.

    Args:
        optimizer: a class of torch.optim, an optimizer over parameters of ``model``, or a function of the parameters
            that returns one.
        lr: the learning rate. ``None`` means the default of the class. Only a class accepts a learning rate.

    Raises:
        TypeError: if no optimizer results, or ``lr`` is given for an optimizer that already has one.
        ValueError: if the optimizer has other parameters, or refuses its arguments.
    """
    if inspect.isclass(optimizer):
        optimizer = optimizer(model.parameters(), **({} if lr is None else {"lr": lr}))
    elif lr is not None:
        raise TypeError("this optimizer has its own learning rate: leave out lr, or pass the class")
    elif not isinstance(optimizer, Optimizer):
        optimizer = optimizer(model.parameters())
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"an optimizer of torch.optim is expected, not {optimizer!r}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS computes the loss several times per step, which fit() does not do: choose another one")
    own = set(map(id, model.parameters()))
    if not all(id(parameter) in own for parameter in cuda_graph.weights(optimizer)):
        raise ValueError("the optimizer has parameters of another model: make it from classifier.model.parameters()")
    return optimizer


def rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, values: Iterable[float]) -> None:
    """Set the learning rate of each group."""
    for group, value in zip(optimizer.param_groups, values, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)  # a CUDA graph reads this tensor
        else:
            group["lr"] = value
