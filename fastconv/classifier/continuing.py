"""Continue the training of a saved classifier: the state of its optimizer, and the number of its epochs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastconv.classifier import optimizers, training_state
from fastconv.classifier.checkpoint import CheckpointError
from fastconv.classifier.objective import Objective


def state_of(objective: Objective, model: nn.Module, settings: Mapping[str, Any], epochs: int) -> dict[str, Any] | None:
    """Return the state of a training in plain types and tensors, for a file.

    Args:
        settings: the settings that a file keeps.
        epochs: the number of finished epochs. The random choices of the next epoch depend on it.

    Returns:
        ``None`` if the optimizer's state contains anything but plain values and tensors, or if weights of the network
        were replaced after compile().
    """
    weights = _weights(objective.optimizer, model)
    state = {index: _on_cpu(entry) for index, entry in objective.optimizer.state_dict()["state"].items()}
    if "" in weights or not all(_is_plain(value) for entry in state.values() for value in entry.values()):
        return None
    return {
        "optimizer": _name(objective.optimizer, settings),
        "weights": weights,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "state": state,
        # A program may change a constant rate. Any other schedule starts anew in each fit().
        "rates": optimizers.rates(objective.optimizer) if settings.get("schedule", "constant") == "constant" else None,
        "epochs": epochs,
    }


def restore(saved: Mapping[str, Any], objective: Objective, model: nn.Module, settings: Mapping[str, Any]) -> int:
    """Give the optimizer the state ``saved``, a result of :func:`state_of`. Return the number of finished epochs.

    Raises:
        CheckpointError: if it is the state of another optimizer or of other weights. Nothing is changed then.
    """
    optimizer, state, rates = objective.optimizer, saved["state"], saved["rates"]
    name = _name(optimizer, settings)
    if saved["optimizer"] != name:
        raise CheckpointError(
            f"the file has the state of the optimizer {saved['optimizer']!r}, not of {name!r}: load it with that one,"
            " and call compile() to choose another"
        )
    try:
        if saved["weights"] != _weights(optimizer, model):
            raise ValueError("it belongs to other weights, or to weights in another order")
        if rates is not None and len(rates) != len(optimizer.param_groups):
            raise ValueError(f"it has {len(rates)} learning rates, but there are {len(optimizer.param_groups)} groups")
        if settings.get("optimizer") == name:
            training_state.check_optimizer(name, model.parameters(), state, complete=False)
        elif not state.keys() <= set(range(len(saved["weights"]))):
            raise ValueError("it has more entries than there are weights")
        training_state.restore_optimizer(optimizer, state)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the file is damaged: the state of its optimizer does not fit: {error}") from error
    if rates is not None:
        optimizers.set_rates(optimizer, rates)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in saved["frozen"])
    return int(saved["epochs"])


def _name(optimizer: Optimizer, settings: Mapping[str, Any]) -> str:
    return str(settings.get("optimizer", type(optimizer).__name__))


def _weights(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of the optimizer's weights in its order. Its state refers to weights by their positions.

    The name of a weight that ``model`` does not have is "".
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter), "") for group in optimizer.param_groups for parameter in group["params"]]


def _on_cpu(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() if isinstance(value, Tensor) else value for name, value in entry.items()}


def _is_plain(value: object) -> bool:
    """Return whether a file of :mod:`fastconv.classifier.checkpoint` can hold ``value``."""
    if type(value) is Tensor:
        return value.layout is torch.strided
    return value is None or type(value) in (bool, int, float, str)
