"""Evaluation and prediction."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fastconv.classifier import losses
from fastconv.classifier.batches import BATCH, in_order
from fastconv.classifier.config import TrainingError
from fastconv.classifier.losses import LOSSES, Loss
from fastconv.classifier.metrics import Metric, Outputs, Scores

__all__ = ["LOSSES", "evaluate", "measure", "predict"]


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, loss: str = "cross-entropy") -> tuple[float, float]:
    """Return the mean loss and the accuracy, between 0 and 1, of ``model`` on these images."""
    value, accuracy = measure(model, in_order(images, labels).epoch(0), losses.named(loss))
    return value, accuracy


def measure(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss, metrics: Mapping[str, Metric] | None = None
) -> Scores:
    """Return the mean loss, the accuracy and the metrics of ``model`` on the images of ``batches``."""
    model.eval()
    like = _first_parameter(model)
    total, correct, count = 0.0, 0, 0
    outputs = Outputs(metrics or {})
    with torch.inference_mode():
        for images, target in batches:
            logits, target = model(images.to(like)), target.to(like.device)
            total += loss(logits, target).item() * len(target)
            correct += int((logits.argmax(1) == target).sum().item())
            count += len(target)
            outputs.add(logits, target)
    if count == 0:
        raise TrainingError("there are no images to evaluate")
    return Scores({"loss": total / count, "accuracy": correct / count, **outputs.values()})


def predict(model: nn.Module, images: Tensor, batch_size: int = BATCH) -> Tensor:
    """Return the probability of each class, (N, classes), for images of shape (N, C, H, W)."""
    return predict_batches(model, images.split(batch_size))


def predict_batches(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return the probability of each class, (N, classes), for the images of all batches."""
    model.eval()
    like = _first_parameter(model)
    with torch.inference_mode():
        parts = [model(batch.to(like)).softmax(1).cpu() for batch in batches]
    if not parts:
        raise TrainingError("there are no images to predict")
    return torch.cat(parts)  # outside of inference mode, so that the caller may change the result in place


def _first_parameter(model: nn.Module) -> Tensor:
    """Return a tensor with the data type and the device that the model expects."""
    return next(model.parameters(), torch.empty(0))
