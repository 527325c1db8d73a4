"""The training loop, and its state between two steps.

The same seed, backend and machine give bitwise the same weights.
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

from fastconv.classifier import cuda_graph, losses, optimizers, training_state
from fastconv.classifier import device as devices
from fastconv.classifier.augment import AUGMENTATIONS
from fastconv.classifier.batches import Batches, TensorBatches, in_order
from fastconv.classifier.config import SCHEDULES, Diverged, TrainingConfig, TrainingError
from fastconv.classifier.distributed import Distributed
from fastconv.classifier.history import EpochResult, History
from fastconv.classifier.inputs import split_for_validation
from fastconv.classifier.metrics import Outputs
from fastconv.classifier.networks import build_model
from fastconv.classifier.objective import Objective


@dataclass(frozen=True)
class Totals:
    """Sums over the images seen so far in an epoch.

    ``images`` counts the images of all processes. ``loss`` and ``correct`` are sums over the ``own`` images of this
    process. They are tensors, because converting them to numbers waits for a GPU to finish the step.
    """

    images: int
    own: int
    loss: Tensor
    correct: Tensor

    def means(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy of the own images, of which there is at least one."""
        return self.loss.item() / self.own, self.correct.item() / self.own


OnStep = Callable[[int, Totals], None]
OnEpoch = Callable[[EpochResult], None]


def fit(
    images: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, History]:
    """Build the network of ``config`` and train it.

    The last ``config.validation_split`` of the images is used for validation. The other images are shuffled anew for
    each epoch.

    Args:
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), int64, of ten classes.
        on_step: called after each step with the epoch, counted from 1, and the sums over the epoch so far.
        on_epoch: called after each epoch with its figures.

    Returns:
        The trained network, and the figures of each epoch.

    Raises:
        Diverged: if the loss is not finite at the end of an epoch.

    Example::

        >>> images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
        >>> model, history = fit(images, labels, TrainingConfig(epochs=1))
        >>> history[0].epoch
        1
    """
    with torch.random.fork_rng(devices=[]):  # restores the caller's random state
        training = Training(images, labels, config)
        training.run(on_step, on_epoch)
    return training.model, training.history


class Training:
    """A training run that can be stopped after any step and continued later, also in another process.

    Random numbers depend on the seed and the epoch. Those of dropout also depend on the rank of the process, and those
    of augmentation on the rank and the step. So :meth:`state_dict` is the complete state, and a continued run gives
    bitwise the weights of an uninterrupted one.

    Under torchrun, each process computes its part of every batch, and the gradients are averaged. The weights equal
    those of one process up to rounding, except with augmentation or dropout: each process draws its own numbers.

    Args:
        images, labels, config: as for :func:`fit`. ``images`` may also be the batches of an epoch. Then labels are
            ``None``.
        classes: the number of classes.
        model: the network to train. By default it is built from ``config.model``.
        held_out: batches for validation. By default, the last ``config.validation_split`` of the images is used.
        objective: the optimizer and the loss. By default, ``config`` chooses them.
        epochs_before: epochs of an earlier training that this one continues. They count for the random choices.

    Attributes:
        model: the network.
        history: the figures of the finished epochs.
        steps: the number of steps of the current epoch that are done.

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
        images: Tensor | Batches,
        labels: Tensor | None,
        config: TrainingConfig,
        classes: int = 10,
        model: nn.Module | None = None,
        held_out: Batches | None = None,
        objective: Objective | None = None,
        epochs_before: int = 0,
    ) -> None:
        self._config, self._epochs_before = config, epochs_before
        self._device, self._dtype = devices.find(config.device, config.backend), devices.DTYPES[config.dtype]
        if isinstance(images, Tensor):
            assert labels is not None
            images, labels = devices.place(images, labels, self._device, self._dtype)
            count = len(images) if held_out is not None else split_for_validation(len(images), config.validation_split)
            self._batches: Batches = TensorBatches(images[:count], labels[:count], config.batch_size)
            held_out = in_order(images[count:], labels[count:]) if count < len(images) else held_out
        else:
            self._batches = images
        self._held_out = held_out
        if config.patience is not None and held_out is None:
            raise TrainingError("patience needs validation images: set a validation split above 0 (--validation-split)")
        torch.manual_seed(config.seed)
        if model is None:
            assert isinstance(images, Tensor)
            _, C, H, W = images.shape
            model = build_model(config.model, config.backend, (C, H, W), classes)
        self.model: nn.Module = devices.prepare(model, self._device, self._dtype)
        if objective is None:
            optimizer = optimizers.named(config.optimizer, self.model, config.lr, config.backend)
            loss = losses.named(config.loss, config.label_smoothing)
            objective = Objective(optimizer, loss, losses.named(config.loss))
        self._objective, self._optimizer = objective, objective.optimizer
        self._rates = optimizers.rates(self._optimizer)
        self._step: Callable[..., tuple[Tensor, Tensor]] = self._one_step
        self._resident: TensorBatches | None = None  # set if a step gets the indices of its images, and gathers them
        if cuda_graph.supports(self._device):
            self._step = cuda_graph.GraphedStep(self._one_step, self.model, self._optimizer, objective.obstacle)
            on_device = isinstance(self._batches, TensorBatches) and self._batches.device == self._device
            self._resident = self._batches if on_device and config.augment == "none" else None  # type: ignore[assignment]
        self._distributed = Distributed(self.model)
        self.history = History()
        self._start_epoch()
        self._stopped = False

    def _start_epoch(self) -> None:
        self.steps = 0  # of the current epoch
        self._seconds = 0.0
        zero = torch.zeros((), device=self._device)
        self._totals = Totals(0, 0, zero, zero.long())
        self._outputs = Outputs(self._objective.metrics)

    @property
    def done(self) -> bool:
        """True if all epochs are finished, or if the validation loss has not fallen for ``config.patience`` epochs."""
        losses = [result.val_loss for result in self.history if result.val_loss is not None]
        patience = self._config.patience
        if patience is not None and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
            return True
        return len(self.history) >= self._config.epochs

    def stop(self) -> None:
        """Make :meth:`run` return after the current step."""
        self._stopped = True

    def run(self, on_step: OnStep | None = None, on_epoch: OnEpoch | None = None) -> None:
        """Train until all epochs are finished or :meth:`stop` is called. The arguments are those of :func:`fit`."""
        while not (self._stopped or self.done):
            if self._run_epoch(on_step):
                self.finish_epoch(on_epoch)
        self._stopped = False

    def _run_epoch(self, on_step: OnStep | None) -> bool:
        """Run the remaining steps of the epoch. Return whether all are done."""
        epoch = len(self.history) + 1
        number = epoch + self._epochs_before
        self.model.train()
        seed = self._seed(number, self._distributed.rank)
        if self.steps == 0:
            torch.manual_seed(seed)  # for layers that draw random numbers, such as dropout
        generator = torch.Generator()
        augment = AUGMENTATIONS[self._config.augment]
        inputs_of_steps = self._batches.epoch if self._resident is None else self._resident.choices
        batches = inputs_of_steps(self._seed(number), self.steps)
        while not self._stopped:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return True
            self._set_rates(epoch)
            count = len(batch[-1])
            part, weight, own = self._distributed.share(count)
            inputs = [values[part].to(self._device) for values in batch]
            if self._config.augment != "none":
                inputs[0] = augment(inputs[0].to(self._dtype), generator.manual_seed((seed + self.steps) % 2**63))
            # Only one process uses a GPU, so a weight is never recorded.
            loss, correct = self._step(*inputs) if weight == 1 else self._one_step(*inputs, weight=weight)
            self._totals = Totals(
                self._totals.images + count,
                self._totals.own + own,
                self._totals.loss.add(loss, alpha=own),
                self._totals.correct + correct if own else self._totals.correct,
            )
            self.steps += 1
            self._seconds += time.perf_counter() - start
            if on_step is not None:
                on_step(epoch, self._totals)
        return next(batches, None) is None

    def _one_step(self, *inputs: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Update the weights once. Return the mean loss and the number of correct predictions before the update."""
        images, target = inputs if self._resident is None else self._resident.gather(*inputs)
        with self._autocast() if self._config.dtype == "bfloat16" else contextlib.nullcontext():
            logits = self._distributed.model(images.to(self._dtype))
        loss = self._objective.loss(logits.to(self._dtype), target)
        self._optimizer.zero_grad()
        (loss if weight == 1 else loss * weight).backward()
        self._optimizer.step()
        self._outputs.add(logits, target)
        return loss.detach(), (logits.detach().argmax(1) == target).sum()

    def _autocast(self) -> torch.autocast:
        # Cached copies of the weights would become outdated in a CUDA graph.
        return torch.autocast(self._device.type, torch.bfloat16, cache_enabled=self._device.type != "cuda")

    def _set_rates(self, epoch: int) -> None:
        """Set the learning rates of the next step. A constant one may be changed by the program that trains."""
        if self._config.schedule == "constant":
            return
        if self._batches.steps is None:
            raise TrainingError(f"the schedule {self._config.schedule} needs a DataLoader with a length")
        done = ((epoch - 1) * self._batches.steps + self.steps) / (self._config.epochs * self._batches.steps)
        factor = SCHEDULES[self._config.schedule](min(done, 1.0))
        optimizers.set_rates(self._optimizer, [rate * factor for rate in self._rates])

    def restore_rates(self) -> None:
        """Give the optimizer the learning rates that it had before the training, which a schedule changed."""
        if self._config.schedule != "constant":
            optimizers.set_rates(self._optimizer, self._rates)

    def finish_epoch(self, on_epoch: OnEpoch | None = None) -> None:
        """End the current epoch, also if some of its steps are not done, and validate the network."""
        epoch, count = len(self.history) + 1, self._totals.images
        if count == 0:
            raise TrainingError("there are no images to train on")
        start = time.perf_counter()
        loss, correct = self._distributed.sums(self._totals.loss, self._totals.correct)  # waits for the GPU
        self._seconds += time.perf_counter() - start
        figures = {"epoch": epoch, "loss": loss / count, "accuracy": correct / count}
        speed = {"seconds": self._seconds, "images_per_second": count / self._seconds}
        result = self._objective.result(self.model, self._held_out, figures | speed, self._outputs)
        if not math.isfinite(result.loss) or not math.isfinite(result.val_loss or 0):
            raise Diverged(f"training diverged in epoch {epoch}: try a learning rate below {max(self._rates):g}")
        self.history.append(result)
        self._start_epoch()
        if on_epoch is not None:
            on_epoch(result)

    def _seed(self, *numbers: int) -> int:
        """Derive a seed from the configuration's seed and ``numbers``, such as the epoch and the rank."""
        (seed,) = np.random.SeedSequence([self._config.seed, *numbers]).generate_state(1, np.uint64)
        return int(seed) >> 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain types and tensors. The tensors are not copied: save them before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [asdict(result) for result in self.history],
            "steps": self.steps,
            "seconds": self._seconds,
            "totals": [self._totals.images, self._totals.own, self._totals.loss, self._totals.correct],
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, which :meth:`state_dict` returned for the same images and configuration.

        Args:
            state: must follow the schema :class:`fastconv.classifier.schemas.TrainingState`.

        Raises:
            RuntimeError, ValueError: if ``state`` belongs to another run.
        """
        training_state.check_weights(self.model, state["model"])
        training_state.check_optimizer(self._config.optimizer, self.model.parameters(), state["optimizer"]["state"])
        training_state.check_epoch(state, self._batches.images or 0, self._config.batch_size, self._dtype)
        training_state.check_random_state(state, self._device)
        self.model.load_state_dict(state["model"])
        training_state.restore_optimizer(self._optimizer, state["optimizer"]["state"])
        self.history[:] = [EpochResult(**result) for result in state["history"]]
        self.steps, self._seconds = state["steps"], state["seconds"]
        images, own, *sums = state["totals"]
        self._totals = Totals(images, own, *(total.to(self._device) for total in sums))
        if self._distributed.rank == 0:
            torch.set_rng_state(state["rng"])
        else:  # the saved sums and random state belong to the first process
            self._totals = Totals(images, 0, torch.zeros(()), torch.zeros((), dtype=torch.int64))
            torch.manual_seed(self._seed(len(self.history) + 1, self._distributed.rank, self.steps))
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self._device)
            group = self._optimizer.param_groups[0]
            group["lr"] = group["lr"].to(self._device)
