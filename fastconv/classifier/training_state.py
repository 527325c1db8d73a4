"""Check the state of an interrupted run or of a saved classifier before it is restored.

The state already follows its schema (:mod:`fastconv.classifier.schemas`). These functions compare it with the network,
the images and the optimizer, and raise ValueError if it does not fit.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: The state that each optimizer keeps per weight.
_OPTIMIZER_STATES = {
    "adam": {"step", "exp_avg", "exp_avg_sq"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
    "rmsprop": {"step", "square_avg"},
}


def check_weights(model: nn.Module, weights: object, called: str = "the model") -> None:
    """Check that ``weights`` is a dictionary with the names, shapes and data types of ``model``."""
    expected = model.state_dict()
    if not isinstance(weights, dict) or weights.keys() != expected.keys():
        raise ValueError(f"its weights are not those of {called}")
    for name, weight in expected.items():
        _check_tensor(name, weights[name], weight.shape, weight.dtype)


def check_finite(weights: dict[str, Tensor]) -> None:
    """Check that ``weights`` has neither infinities nor NaN."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def check_optimizer(
    optimizer: str, parameters: Iterable[Tensor], kept: dict[int, dict[str, Any]], complete: bool = True
) -> None:
    """Check the optimizer's state, ``kept``. It is empty before the first step.

    Args:
        complete: whether every weight must have a state. Weights that are never trained have none.
    """
    parameters = list(parameters)
    if not kept:
        return
    indices = set(range(len(parameters)))
    if not kept.keys() <= indices or (complete and kept.keys() != indices):
        raise ValueError("its optimizer's state does not have one entry per weight")
    for index, entry in kept.items():
        if entry.keys() != _OPTIMIZER_STATES[optimizer]:
            raise ValueError(f"its optimizer's state {index} is not that of {optimizer}")
        parameter = parameters[index]
        for name, value in entry.items():
            shape, dtype = (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
            _check_tensor(f"the optimizer's {name}", value, shape, dtype)


def restore_optimizer(optimizer: Optimizer, kept: dict[int, dict[str, Any]]) -> None:
    """Give ``optimizer`` the checked state ``kept``. It keeps its learning rates and other options."""
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})


def check_epoch(state: dict[str, Any], images: int, batch_size: int, dtype: torch.dtype) -> None:
    """Check the steps and sums of the current epoch, which has ``images`` images of type ``dtype``."""
    batches = -(-images // batch_size)
    steps, (seen, own, loss, correct) = state["steps"], state["totals"]
    if steps > batches:
        raise ValueError(f"it has done {steps} steps, but an epoch has {batches}")
    if seen != min(steps * batch_size, images) or type(seen) is not int:
        raise ValueError(f"it cannot have seen {seen!r} images in {steps} steps")
    if type(own) is not int or not 0 <= own <= seen:
        raise ValueError(f"a process cannot have seen {own!r} of {seen} images")
    if steps > 0 and not (own > 0 and state["seconds"] > 0 and state["optimizer"]["state"]):
        raise ValueError(f"it has done {steps} steps, but its time, its images or its optimizer's state are missing")
    # Before the first step, the sum is a zero in float32.
    _check_tensor("the sum of the loss", loss, torch.Size(), dtype if steps else torch.float32)
    _check_tensor("the number of correct predictions", correct, torch.Size(), torch.int64)


def check_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Check the states of the random generators. torch would report a wrong size with a C++ assertion."""
    expected = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        expected["rng_cuda"] = torch.cuda.get_rng_state(device)
    for name, like in expected.items():
        _check_tensor(name, state[name], like.shape, torch.uint8)


def _check_tensor(name: str, value: object, shape: torch.Size, dtype: torch.dtype) -> None:
    plain = isinstance(value, Tensor) and value.is_cpu and value.layout is torch.strided
    if not plain or (value.shape, value.dtype) != (shape, dtype):  # type: ignore[attr-defined]
        raise ValueError(f"{name} is not {dtype} of shape {tuple(shape)}")
