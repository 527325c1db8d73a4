"""The metrics of :meth:`Classifier.compile`, and the result of :meth:`Classifier.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv.classifier.names import plain, refuse_keras, suggestion

#: A function of probabilities (N, classes) and labels (N,).
Metric = Callable[[Tensor, Tensor], Any]

_VALIDATION = "val_"
_ACCURACY = ("accuracy", "acc", "categorical_accuracy", "sparse_categorical_accuracy")


class Scores(tuple[float, ...]):
    """The loss, the accuracy and the metrics: a tuple of numbers that also have names.

    Example::

        >>> scores = Scores({"loss": 0.5, "accuracy": 0.75})
        >>> loss, accuracy = scores
        >>> scores.accuracy, scores["loss"], dict(scores)
        (0.75, 0.5, {'loss': 0.5, 'accuracy': 0.75})
    """

    _names: tuple[str, ...]

    def __new__(cls, values: Mapping[str, float]) -> Scores:
        scores = super().__new__(cls, values.values())
        scores._names = tuple(values)
        return scores

    def keys(self) -> tuple[str, ...]:
        """Return the names."""
        return self._names

    def items(self) -> Iterator[tuple[str, float]]:
        """Iterate over the names and their numbers."""
        return zip(self._names, self, strict=True)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self._names:
            raise KeyError(f"there is no {key!r}: there are {', '.join(self._names)}")
        return super().__getitem__(self._names.index(key))

    def __getattr__(self, name: str) -> float:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"there is no {name!r} among these scores")
        return super().__getitem__(self._names.index(name))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._names]

    def __reduce__(self) -> tuple[Any, ...]:
        return Scores, (dict(self.items()),)

    def __repr__(self) -> str:
        return f"Scores({', '.join(f'{name}={value:.4f}' for name, value in self.items())})"


class Outputs:
    """The probabilities and labels of all batches of an epoch, for metrics that need all of them at once.

    Nothing is kept if there is no metric.

    Example::

        >>> outputs = Outputs({"mean": lambda probabilities, labels: probabilities[:, 0].mean()})
        >>> outputs.add(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        >>> outputs.values()
        {'mean': 0.5}
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = metrics
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep the outputs of a batch: logits (N, classes) and labels (N,)."""
        if self._metrics:
            self._kept.append((logits.detach().softmax(1), labels))

    def values(self) -> dict[str, float]:
        """Return the metrics by name."""
        if not self._metrics:
            return {}
        probabilities, labels = (torch.cat(parts).cpu() for parts in zip(*self._kept, strict=True))
        return {name: _number(name, metric(probabilities, labels)) for name, metric in self._metrics.items()}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"the metric {name!r} must return a number, not {found}") from error


def find(metrics: Mapping[str, Metric] | Sequence[str | Metric] | str | Metric | None) -> dict[str, Metric]:
    """Return the functions in ``metrics`` by name. Accuracy is left out, because it is always computed.

    Args:
        metrics: names of the accuracy, functions of probabilities and labels, or a mapping from names to functions.

    Raises:
        ValueError: if a name is unknown or occurs twice.
        TypeError: if a metric is neither a name nor can be called.

    Example::

        >>> def top2(probabilities, labels):
        ...     return (probabilities.topk(2).indices == labels[:, None]).any(1).double().mean()
        >>> list(find(["accuracy", top2]))
        ['top2']
    """
    if metrics is None:
        return {}
    pairs: list[tuple[str, Any]]
    if isinstance(metrics, Mapping):
        pairs = [(str(name), metric) for name, metric in metrics.items()]
    else:
        listed = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
        pairs = [(_name(metric), metric) for metric in listed if not _is_built_in(metric)]
    found: dict[str, Metric] = {}
    for name, metric in pairs:
        refuse_keras("metric", metric, "pass a function of probabilities and labels")
        if not callable(metric):
            raise TypeError(f"the metric {name!r} must be a function of probabilities and labels, not {metric!r}")
        if name in found or name in ("loss", "accuracy"):
            raise ValueError(f"two metrics have the name {name!r}: pass {{name: function}}, with another name for each")
        if name.startswith(_VALIDATION):
            raise ValueError(f"the metric {name!r} is named as a validation figure: pass {{another name: function}}")
        found[name] = metric
    return found


def _is_built_in(metric: Any) -> bool:
    """Return whether ``metric`` is a name of the accuracy or of the loss, which are always computed."""
    if not isinstance(metric, str):
        return False
    if plain(metric) in (plain(name) for name in (*_ACCURACY, "loss")):
        return True
    hint = suggestion(metric, _ACCURACY)
    raise ValueError(f"unknown metric {metric!r}: pass {{name: function(probabilities, labels)}}{hint}")


def _name(metric: Any) -> str:
    return getattr(metric, "__name__", None) or type(metric).__name__
