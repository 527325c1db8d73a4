"""Losses, evaluation and prediction."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BATCH = 500


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def _mse(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    classes = logits.shape[1]
    wanted = F.one_hot(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return F.mse_loss(logits.softmax(1), wanted)


#: The functions for the names in :data:`fastconv.classifier.config.LOSSES`.
LOSSES: dict[str, Callable[..., Tensor]] = {"cross-entropy": _cross_entropy, "mse": _mse}


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, loss: str = "cross-entropy") -> tuple[float, float]:
    """Return the mean loss and the accuracy, between 0 and 1, of ``model`` on these images."""
    model.eval()
    like = _first_parameter(model)
    total, correct = 0.0, 0
    with torch.inference_mode():
        for batch, target in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            logits, target = model(batch.to(like)), target.to(like.device)
            total += LOSSES[loss](logits, target).item() * len(target)
            correct += int((logits.argmax(1) == target).sum().item())
    return total / len(images), correct / len(images)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the probability of each class, (N, classes), for images of shape (N, C, H, W)."""
    model.eval()
    like = _first_parameter(model)
    with torch.inference_mode():
        return torch.cat([model(batch.to(like)).softmax(1).cpu() for batch in images.split(_BATCH)])


def _first_parameter(model: nn.Module) -> Tensor:
    """Return a tensor with the data type and the device that the model expects."""
    return next(model.parameters(), torch.empty(0))
