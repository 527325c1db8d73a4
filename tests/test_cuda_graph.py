"""The training step as a CUDA graph, on the CPU: which steps are replayed, and when the step is recorded again.

A stand-in takes the place of CUDA's streams and graphs. Its recordings change no tensor. Its replays run the step again
on the recorded inputs. So a training with replays must give bitwise the weights of one without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastconv.classifier import Classifier, cuda_graph
from fastconv.classifier.config import TrainingConfig
from fastconv.classifier.cuda_graph import GraphedStep
from fastconv.classifier.fit import Training

#: 120 training images: three batches of 32 and one of 24.
IMAGES, LABELS = torch.rand(150, 1, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(150) % 10


class Graphs:
    """The stand-in. ``log`` has an entry for each step: how it ran, and the number of its images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.error: RuntimeError | None = None  # of the next recording
        self._doing, self._recorder = "alone", None
        self._streams: list[object] = []
        graphs = self

        class Watched(GraphedStep):
            def __init__(self, step: cuda_graph.Step, *arguments: Any) -> None:
                def logged(*inputs: Tensor) -> tuple[Tensor, Tensor]:
                    graphs.log.append(f"{graphs._doing} {len(inputs[-1])}")
                    return step(*inputs)

                super().__init__(logged, *arguments)

            def _record(self, inputs: tuple[Tensor, ...]) -> None:
                graphs._recorder = self
                super()._record(inputs)

        class Graph:
            def __init__(self) -> None:
                self.of = graphs._recorder

            def replay(self) -> None:
                of = self.of
                assert of is not None
                attached = [parameter.grad for parameter, _ in of._gradients]
                with graphs._as("replayed"):
                    results = of._step(*of._inputs)
                for kept, result in zip(of._results, results, strict=True):
                    kept.copy_(result)
                for (parameter, grad), old in zip(of._gradients, attached, strict=True):
                    if grad is not None and parameter.grad is not None:
                        grad.copy_(parameter.grad)
                    parameter.grad = old

        class Stream:
            def wait_stream(self, other: Stream) -> None: ...

        fakes = {"Stream": Stream, "current_stream": Stream, "stream": nullcontext, "graph": self._recording}
        fakes |= {"CUDAGraph": Graph, "set_stream": self._streams.append}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(cuda_graph, "GraphedStep", Watched)
        monkeypatch.setattr(cuda_graph, "supports", lambda device: True)

    @contextmanager
    def _as(self, doing: str) -> Iterator[None]:
        self._doing = doing
        yield
        self._doing = "alone"

    @contextmanager
    def _recording(self, graph: object, capture_error_mode: str) -> Iterator[None]:
        if self.error is not None:
            raise self.error
        assert self._recorder is not None
        model, optimizer = self._recorder._model, self._recorder._optimizer
        kept = [*model.parameters(), *model.buffers()]
        kept += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        before, random = [value.detach().clone() for value in kept], torch.get_rng_state()
        with self._as("recorded"):
            yield
        torch.set_rng_state(random)
        with torch.no_grad():
            for value, old in zip(kept, before, strict=True):
                value.copy_(old)

    def count(self, how: str) -> int:
        return sum(entry.startswith(how) for entry in self.log)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return Graphs(monkeypatch)


def trained(training: Training, on_step: Callable[[int], None] = lambda step: None) -> list[Tensor]:
    """Train, and return the weights and the losses. ``on_step`` is called with the number of finished steps."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        on_step(steps)

    training.run(count)
    losses = torch.tensor([[result.loss, result.accuracy] for result in training.history], dtype=torch.float64)
    return [*training.model.state_dict().values(), losses]


def assert_same_without_graphs(
    result: list[Tensor], again: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(cuda_graph, "_STEPS_BEFORE", 10**9)
        assert all(map(torch.equal, result, again()))


@pytest.mark.parametrize("model", ["conv4, pool, dense8", "conv4, bn, pool, dense8, dropout.5"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_training_with_replays_gives_bitwise_the_weights_of_training_without(
    model: str, optimizer: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> list[Tensor]:
        config = TrainingConfig(model=model, epochs=3, batch_size=32, optimizer=optimizer, schedule="one-cycle")
        return trained(Training(IMAGES, LABELS, config))

    result = train()
    first_epoch = ["alone 32", "alone 32", "alone 32", "alone 24"]
    others = ["replayed 32", "replayed 32", "replayed 32", "alone 24"]
    assert graphs.log == [*first_epoch, "recorded 32", *others, *others]
    assert_same_without_graphs(result, train, monkeypatch)


def test_only_the_largest_batches_are_recorded(graphs: Graphs) -> None:
    layer = nn.Linear(3, 1)

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return images.sum(), images * target.view(-1, 1)

    graphed = cuda_graph.GraphedStep(step, layer, torch.optim.SGD(layer.parameters()))
    for count in [2, 2, 4, 4, 2, 4, 4, 2, 4]:  # a resumed run may begin with the last batch of an epoch
        images, target = torch.randn(count, 3), torch.arange(float(count))
        total, product = graphed(images, target)
        assert torch.equal(total, images.sum())
        assert torch.equal(product, images * target.view(-1, 1))
    alone = ["alone 2", "alone 2", "alone 4", "alone 4", "alone 2", "alone 4"]
    assert graphs.log == [*alone, "recorded 4", "replayed 4", "alone 2", "replayed 4"]


def test_the_graph_gathers_the_images_unless_they_are_augmented(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(augment: str) -> tuple[list[Tensor], list[str]]:
        asked: list[str] = []

        def gather(chosen: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(graphs._doing)
            return IMAGES[chosen], LABELS[chosen]

        training = Training(
            IMAGES, LABELS, TrainingConfig(model="conv4, pool", epochs=2, batch_size=32, augment=augment)
        )
        monkeypatch.setattr(training._batches, "gather", gather)
        return trained(training), asked

    result, asked = train("none")
    assert asked == ["alone"] * 4 + ["recorded"] + ["replayed"] * 3 + ["alone"]
    assert_same_without_graphs(result, lambda: train("none")[0], monkeypatch)
    result, asked = train("affine")
    assert asked == ["alone"] * 8
    assert graphs.log[-4:] == ["replayed 32", "replayed 32", "replayed 32", "alone 24"]
    assert_same_without_graphs(result, lambda: train("affine")[0], monkeypatch)


def test_the_order_of_an_epoch_is_copied_to_the_device_once(graphs: Graphs) -> None:
    training = Training(IMAGES, LABELS, TrainingConfig(model="conv4, pool", batch_size=32))
    assert training._resident is not None
    (first,), *others = training._resident.choices(seed=1)
    assert all(chosen.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for (chosen,) in others)


def layer_of(training: Training, kind: type[nn.Module]) -> nn.Module:
    return next(module for module in training.model.modules() if isinstance(module, kind))


def set_rate(training: Training) -> None:
    training._optimizer.param_groups[0]["lr"] = 0.1


def move_weights(training: Training) -> None:
    for parameter in training.model.parameters():
        parameter.data = parameter.data.clone()


def replace_state(training: Training) -> None:
    for state in training._optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].clone()


CHANGES: dict[str, Callable[[Training], object]] = {
    "a rate that is a number": set_rate,
    "weight decay": lambda training: training._optimizer.param_groups[0].update(weight_decay=0.1),
    "addresses of weights": move_weights,
    "state of the optimizer": replace_state,
    "a frozen weight": lambda training: training.model.get_submodule("conv1").requires_grad_(False),
    "a layer in eval mode": lambda training: layer_of(training, nn.BatchNorm2d).eval(),
    "dropout": lambda training: setattr(layer_of(training, nn.Dropout), "p", 0.1),
}
SAME: dict[str, Callable[[Training], object]] = {
    "a rate in its tensor": lambda training: training._optimizer.param_groups[0]["lr"].fill_(0.1),
    "values of weights": lambda training: training.model.load_state_dict(training.model.state_dict()),
    "no gradients": lambda training: training._optimizer.zero_grad(),
}


@pytest.mark.parametrize("change", [*CHANGES, *SAME])
def test_a_change_that_a_graph_cannot_follow_is_recorded_anew(
    change: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> list[Tensor]:
        config = TrainingConfig(model="conv4, bn, pool, dense8, dropout.5", epochs=2, batch_size=10)
        training = Training(IMAGES, LABELS, config)
        return trained(training, lambda step: (CHANGES | SAME)[change](training) if step == 8 else None)

    result = train()
    recorded = 1 + (change in CHANGES) + (change == "a layer in eval mode")  # the next epoch ends eval mode
    assert (graphs.count("alone"), graphs.count("recorded")) == (3 * recorded, recorded)
    assert graphs.count("replayed") == 24 - 3 * recorded
    assert_same_without_graphs(result, train, monkeypatch)


def test_gradients_of_each_step_can_be_read_after_it(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> list[Tensor]:
        training, gradients = Training(IMAGES, LABELS, TrainingConfig(model="conv4, pool", batch_size=32)), []

        def read(step: int) -> None:
            gradients.extend(p.grad.clone() for p in training.model.parameters() if p.grad is not None)

        trained(training, read)
        return gradients

    result = train()
    assert len(result) == 20 * 4
    assert_same_without_graphs(result, train, monkeypatch)


class Own(nn.Sequential):
    """A network with its own Python code."""


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    model[1].register_forward_hook(lambda *_: None)
    return model


def weight_hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    model[1].weight.register_hook(lambda grad: grad * 2)
    return model


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (lambda: Own(nn.Flatten(), nn.Linear(144, 10)), {}, r"Own has its own forward\(\)"),
        (hooked, {}, "there are hooks"),
        (weight_hooked, {}, "there are hooks"),
        (lambda: "conv4, pool", {"metrics": {"mean": lambda p, t: p.mean()}}, "the metrics need the outputs"),
        (lambda: "conv4, pool", {"loss": lambda x, t: x.logsumexp(1).mean()}, "the loss is not given by its name"),
        (lambda: "conv4, pool", {"optimizer": torch.optim.NAdam}, "the optimizer is not given by its name"),
    ],
)
def test_a_step_that_cannot_be_recorded_runs_without_a_graph_and_says_so_once(
    model: Callable[[], Any], settings: dict[str, Any], reason: str, graphs: Graphs
) -> None:
    torch.manual_seed(0)
    classifier = Classifier(model(), (1, 12, 12), 10, "torch").compile(**settings)
    with pytest.warns(UserWarning, match=f"without a CUDA graph, because {reason}") as warned:
        classifier.fit(IMAGES, LABELS, epochs=4, verbose=0)
    assert len(warned) == 1
    assert (graphs.count("alone"), graphs.count("recorded")) == (12, 0)


def test_a_hook_that_is_added_later_ends_the_replays(graphs: Graphs) -> None:
    training = Training(IMAGES, LABELS, TrainingConfig(model="conv4, pool", epochs=1, batch_size=10))
    calls: list[int] = []

    def add(step: int) -> None:
        if step == 6:
            training.model.get_submodule("conv1").register_forward_hook(lambda *_: calls.append(1))

    with pytest.warns(UserWarning, match="there are hooks"):
        trained(training, add)
    assert graphs.count("replayed") == 3
    assert len(calls) == 6 + 1  # and the validation


def test_a_failed_recording_is_reported_once_and_does_not_end_the_training(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> list[Tensor]:
        return trained(Training(IMAGES, LABELS, TrainingConfig(model="conv4, pool", epochs=2, batch_size=32)))

    graphs.error = RuntimeError("operation not permitted when stream is capturing\nmore lines")
    with pytest.warns(UserWarning, match=r"its recording failed \(operation not .* is capturing\)\. The") as warned:
        result = train()
    assert len(warned) == 1
    assert len(graphs._streams) == 1
    assert graphs.count("alone") == 8
    assert_same_without_graphs(result, train, monkeypatch)


def test_a_usual_training_warns_about_nothing(graphs: Graphs) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier("mnist-cnn").compile("sgd").fit(torch.rand(20, 28, 28), torch.arange(20) % 10, verbose=0)
