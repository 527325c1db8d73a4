"""Training and evaluation, as plain functions over tensors.

The same seed, backend and machine give the same weights, bit for bit.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastconv.nn
import fastconv.optim
from fastconv.builder import build_cnn
from fastconv.classifier import device as devices
from fastconv.classifier.augment import AUGMENTATIONS
from fastconv.classifier.config import MODELS, SCHEDULES, Diverged, TrainingConfig, TrainingError
from fastconv.classifier.cuda_graph import GraphedStep
from fastconv.classifier.distributed import Distributed

_EVALUATION_BATCH = 500
#: What each optimizer keeps of a weight.
_OPTIMIZER_STATES = {
    "adam": {"step", "exp_avg", "exp_avg_sq"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "sgd": {"momentum_buffer"},
}


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch. Loss and accuracy are means over it, while the weights still change; ``val_*`` are of the
    held-out images after it (``None`` without any); ``seconds`` is the training alone, without validation."""

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Totals:
    """Sums over the images seen so far in an epoch. They stay tensors, since reading one stops the step for it.

    ``images`` counts those of all processes; loss and correct are sums over the ``own`` ones of this process.
    """

    images: int
    own: int
    loss: Tensor
    correct: Tensor


OnStep = Callable[[int, Totals], None]
OnEpoch = Callable[[EpochResult], None]


def build_model(
    name: str, backend: str = "fastconv", shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10
) -> nn.Module:
    """The network ``name`` on fastconv's layers or, with ``backend="torch"``, PyTorch's.

    Args:
        name: one of :data:`MODELS`, or a description as :func:`fastconv.builder.build_cnn` takes it.
        backend: one of :data:`BACKENDS`.
        shape: (C, H, W) of an image.
        classes: how many.

    Raises:
        TrainingError: if such images are too small for it.

    Example::

        >>> sum(parameter.numel() for parameter in build_model("mnist-cnn").parameters())
        241546
    """
    try:
        return build_cnn(MODELS.get(name, name), shape, classes, layers=nn if backend == "torch" else fastconv.nn)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    except RuntimeError as error:  # of torch's allocator, over many lines
        raise TrainingError(f"no memory for {name!r}: fewer channels or units, or smaller images") from error


def split_for_validation(count: int, fraction: float) -> int:
    """How many of ``count`` training images are left to train on when the last ``fraction`` is held out."""
    return count - int(count * fraction)


def fit(
    images: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, list[EpochResult]]:
    """Build the network of ``config`` and train it.

    The last ``config.validation_split`` of the images is held out; the others are drawn in a new order each epoch.

    Args:
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), int64, of ten classes.
        on_step: called after each step with the epoch, counted from 1, and the sums over it so far.
        on_epoch: called after each epoch with its figures.

    Returns:
        The trained network, and the figures of each epoch.

    Raises:
        Diverged: if the loss is no longer finite at the end of an epoch.

    Example::

        >>> images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
        >>> model, history = fit(images, labels, TrainingConfig(epochs=1))
        >>> history[0].epoch
        1
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        training = Training(images, labels, config)
        training.run(on_step, on_epoch)
    return training.model, training.history


class Training:
    """A training under way, that can be left after any step and taken up again, in another process too.

    Nothing of it depends on what was drawn in another epoch: an epoch's order comes from the seed and the epoch's
    number, what dropout draws from those and the process's rank, the augmentation of a batch from the step's number
    too. So what :meth:`state_dict` returns is all there is to keep, and a training that is taken up again gives the
    very weights of one that was not interrupted.

    Of several processes under torchrun, each takes its share of every batch, and the gradients are averaged: the same
    batches, and but for rounding the same weights, as in one (augmentation and dropout draw differently).

    Args:
        images, labels, config: as for :func:`fit`.
        classes: how many.
        model: trained instead of a new network of ``config.model``.
        held_out: images and labels for validation, instead of the last ``config.validation_split`` of the others.

    Attributes:
        model: the network.
        history: the figures of the epochs that are done.

    Example::

        >>> images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
        >>> first = Training(images, labels, TrainingConfig(epochs=2))
        >>> first.run(on_epoch=lambda result: first.stop())
        >>> second = Training(images, labels, TrainingConfig(epochs=2))
        >>> second.load_state_dict(first.state_dict())
        >>> second.run()
        >>> [result.epoch for result in second.history]
        [1, 2]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: TrainingConfig,
        classes: int = 10,
        model: nn.Module | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._config = config
        self._device = devices.find(config.device, config.backend)
        images, labels = images.to(self._device, _DTYPES[config.dtype]), labels.to(self._device)
        count = len(images) if held_out is not None else split_for_validation(len(images), config.validation_split)
        self._images, self._labels = images[:count], labels[:count]
        self._held_out = (images[count:], labels[count:]) if held_out is None else held_out
        if config.patience is not None and not len(self._held_out[0]):
            raise TrainingError("patience needs held-out images: give a validation split above 0 (--validation-split)")
        torch.manual_seed(config.seed)
        if model is None:
            _, C, H, W = images.shape
            model = build_model(config.model, config.backend, (C, H, W), classes)
        # The faster layout for both backends: PyTorch's step takes 11 ms in it, and 16 in the other.
        self.model: nn.Module = model.to(  # type: ignore[call-overload]
            self._device, images.dtype, memory_format=torch.channels_last
        )
        self._optimizer = _optimizer(self.model, config, self._device)
        self._step: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] = self._one_step
        if self._device.type == "cuda":
            graphed = GraphedStep(lambda images, target: self._one_step(images, target, 1.0))
            self._step = lambda images, target, weight: graphed(images, target)
        self._distributed = Distributed(self.model)
        self.history: list[EpochResult] = []
        self._start_epoch()
        self._stopped = False

    def _start_epoch(self) -> None:
        self._steps = 0  # of the epoch under way
        self._seconds = 0.0
        zero = torch.zeros((), device=self._device)
        self._totals = Totals(0, 0, zero, zero.long())

    @property
    def done(self) -> bool:
        """Whether every epoch is, or the held-out images' loss has stopped falling for ``config.patience`` epochs."""
        losses = [result.val_loss for result in self.history if result.val_loss is not None]
        patience = self._config.patience
        if patience is not None and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
            return True
        return len(self.history) >= self._config.epochs

    def stop(self) -> None:
        """Make :meth:`run` return after the step under way."""
        self._stopped = True

    def run(self, on_step: OnStep | None = None, on_epoch: OnEpoch | None = None) -> None:
        """Train until every epoch is done, or :meth:`stop` is called. The arguments are :func:`fit`'s."""
        while not (self._stopped or self.done):
            if self._run_epoch(on_step):
                self._finish_epoch(on_epoch)
        self._stopped = False

    def _run_epoch(self, on_step: OnStep | None) -> bool:
        """The steps that the epoch still lacks. Whether it got to its end."""
        epoch = len(self.history) + 1
        self.model.train()
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(self._seed(epoch)))
        batches = order.split(self._config.batch_size)
        seed = self._seed(epoch, self._distributed.rank)
        if self._steps == 0:
            torch.manual_seed(seed)  # for networks that draw, as in dropout
        generator = torch.Generator()
        total_steps = self._config.epochs * len(batches)
        schedule, augment = SCHEDULES[self._config.schedule], AUGMENTATIONS[self._config.augment]
        while self._steps < len(batches) and not self._stopped:
            start = time.perf_counter()
            done = ((epoch - 1) * len(batches) + self._steps) / total_steps
            self._set_lr(self._config.lr * schedule(done))
            batch, weight, own = self._distributed.share(batches[self._steps])
            batch = batch.to(self._device)
            images = self._images.index_select(0, batch)
            if self._config.augment != "none":
                images = augment(images, generator.manual_seed((seed + self._steps) % 2**63))
            loss, correct = self._step(images, self._labels.index_select(0, batch), weight)
            self._totals = Totals(
                self._totals.images + len(batches[self._steps]),
                self._totals.own + own,
                self._totals.loss.add(loss, alpha=own),
                self._totals.correct + correct if own else self._totals.correct,
            )
            self._steps += 1
            self._seconds += time.perf_counter() - start
            if on_step is not None:
                on_step(epoch, self._totals)
        return self._steps == len(batches)

    def _one_step(self, images: Tensor, target: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Move the weights once. The mean loss before, and how many predictions were right."""
        config = self._config
        with self._autocast() if config.dtype == "bfloat16" else contextlib.nullcontext():
            logits = self._distributed.model(images)
        loss = _LOSSES[config.loss](logits.to(self._images.dtype), target, config.label_smoothing)
        self._optimizer.zero_grad()
        (loss if weight == 1 else loss * weight).backward()
        self._optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == target).sum()

    def _autocast(self) -> torch.autocast:
        # What it keeps from one use of a weight to the next would be outdated in a graph.
        return torch.autocast(self._device.type, torch.bfloat16, cache_enabled=self._device.type != "cuda")

    def _set_lr(self, lr: float) -> None:
        group = self._optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # where a graph reads it
        else:
            group["lr"] = lr

    def _finish_epoch(self, on_epoch: OnEpoch | None) -> None:
        epoch, count = len(self.history) + 1, len(self._images)
        start = time.perf_counter()
        loss, correct = self._distributed.sums(self._totals.loss, self._totals.correct)  # waits for a GPU
        self._seconds += time.perf_counter() - start
        val_loss, val_accuracy = None, None
        if len(self._held_out[0]):
            val_loss, val_accuracy = evaluate(self.model, *self._held_out, self._config.loss)
        result = EpochResult(
            epoch=epoch,
            loss=loss / count,
            accuracy=correct / count,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=self._seconds,
            images_per_second=count / self._seconds,
        )
        if not math.isfinite(result.loss) or not math.isfinite(val_loss or 0):
            raise Diverged(f"training diverged in epoch {epoch}: try a learning rate below {self._config.lr:g}")
        self.history.append(result)
        self._start_epoch()
        if on_epoch is not None:
            on_epoch(result)

    def _seed(self, *numbers: int) -> int:
        """For what is drawn in this epoch, or in this epoch by this process."""
        (seed,) = np.random.SeedSequence([self._config.seed, *numbers]).generate_state(1, np.uint64)
        return int(seed) >> 1

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: the tensors are the training's own, to be saved before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [asdict(result) for result in self.history],
            "steps": self._steps,
            "seconds": self._seconds,
            "totals": [self._totals.images, self._totals.own, self._totals.loss, self._totals.correct],
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, of a training with the same images and configuration.

        Args:
            state: of :class:`fastconv.classifier.schemas.TrainingState`.

        Raises:
            RuntimeError, ValueError: if it is of another training.
        """
        self._check_state(state)
        self.model.load_state_dict(state["model"])
        # What is not a state is as the configuration says.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.history[:] = [EpochResult(**result) for result in state["history"]]
        self._steps, self._seconds = state["steps"], state["seconds"]
        images, own, *sums = state["totals"]
        self._totals = Totals(images, own, *(total.to(self._device) for total in sums))
        if self._distributed.rank == 0:
            torch.set_rng_state(state["rng"])
        else:  # both were the first process's
            self._totals = Totals(images, 0, torch.zeros(()), torch.zeros((), dtype=torch.int64))
            torch.manual_seed(self._seed(len(self.history) + 1, self._distributed.rank, self._steps))
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self._device)
            group = self._optimizer.param_groups[0]
            group["lr"] = group["lr"].to(self._device)

    def _check_state(self, state: dict[str, Any]) -> None:
        """See that a state, which follows its schema, is of this network, these images and this optimizer."""
        weights = self.model.state_dict()
        if state["model"].keys() != weights.keys():
            raise ValueError("its weights are not those of the model")
        for name, weight in weights.items():
            _check_tensor(name, state["model"][name], weight.shape, weight.dtype)
        kept = state["optimizer"]["state"]
        if kept:  # none before the first step
            if set(kept) != set(range(len(list(self.model.parameters())))):
                raise ValueError("its optimizer's state is not one for each weight")
            names = _OPTIMIZER_STATES[self._config.optimizer]
            for index, parameter in enumerate(self.model.parameters()):
                if kept[index].keys() != names:
                    raise ValueError(f"its optimizer's state {index} is not that of {self._config.optimizer}")
                for name, value in kept[index].items():
                    shape, dtype = (
                        (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
                    )
                    _check_tensor(f"the optimizer's {name}", value, shape, dtype)
        batches = math.ceil(len(self._images) / self._config.batch_size)
        steps, (images, own, loss, correct) = state["steps"], state["totals"]
        if steps > batches:
            raise ValueError(f"it has done {steps} of {batches} steps")
        if images != min(steps * self._config.batch_size, len(self._images)) or type(images) is not int:
            raise ValueError(f"it has not seen {images!r} images in {steps} steps")
        if type(own) is not int or not 0 <= own <= images:
            raise ValueError(f"a process has not seen {own!r} of {images} images")
        if steps > 0 and not (own > 0 and state["seconds"] > 0 and kept):
            raise ValueError(f"it has not done {steps} steps in no time, or without images or an optimizer's state")
        # A zero before the first step, of another type.
        _check_tensor("the sum of the loss", loss, torch.Size(), self._images.dtype if steps else torch.float32)
        _check_tensor("the number of right predictions", correct, torch.Size(), torch.int64)
        # torch.set_rng_state answers another size with an assertion of its C++.
        random = [("rng", torch.get_rng_state())]
        if self._device.type == "cuda":
            random.append(("rng_cuda", torch.cuda.get_rng_state(self._device)))
        for name, like in random:
            _check_tensor(name, state[name], like.shape, torch.uint8)


def _check_tensor(name: str, value: object, shape: torch.Size, dtype: torch.dtype) -> None:
    plain = isinstance(value, Tensor) and value.is_cpu and value.layout is torch.strided
    if not plain or (value.shape, value.dtype) != (shape, dtype):  # type: ignore[attr-defined]
        raise ValueError(f"{name} is not {dtype} of shape {tuple(shape)}")


def _optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    parameters = model.parameters()
    on_cuda = device.type == "cuda"
    lr = torch.tensor(config.lr, device=device) if on_cuda else config.lr
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, fused=True)
    optim = torch.optim if config.backend == "torch" else fastconv.optim
    kind = optim.AdamW if config.optimizer == "adamw" else optim.Adam
    return kind(parameters, lr=lr, fused=True, capturable=on_cuda)


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def _mse(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    classes = logits.shape[1]
    wanted = F.one_hot(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return F.mse_loss(logits.softmax(1), wanted)


_LOSSES: dict[str, Callable[..., Tensor]] = {"cross-entropy": _cross_entropy, "mse": _mse}
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, loss: str = "cross-entropy") -> tuple[float, float]:
    """The mean loss and the accuracy (between 0 and 1) of ``model`` on these images."""
    model.eval()
    like = _first_parameter(model)
    total, correct = 0.0, 0
    with torch.inference_mode():
        for batch, target in zip(images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True):
            logits, target = model(batch.to(like)), target.to(like.device)
            total += _LOSSES[loss](logits, target).item() * len(target)
            correct += int((logits.argmax(1) == target).sum().item())
    return total / len(images), correct / len(images)


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The probabilities, (N, classes), of each class for images of shape (N, C, H, W)."""
    model.eval()
    like = _first_parameter(model)
    with torch.inference_mode():
        return torch.cat([model(batch.to(like)).softmax(1).cpu() for batch in images.split(_EVALUATION_BATCH)])


def _first_parameter(model: nn.Module) -> Tensor:
    """Of whose type and on whose device the images are to be."""
    return next(model.parameters(), torch.empty(0))
