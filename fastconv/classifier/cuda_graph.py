"""A training step that is replayed from a CUDA graph.

A step of a small network launches about a hundred kernels. Each runs for a few microseconds, less than Python needs to
launch it. A CUDA graph records the kernels and their addresses once, and replays them in one call. So everything that
changes from step to step must be in a tensor at a fixed address: the inputs, which are copied there, and the learning
rate. Any other change needs another recording.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Step = Callable[..., tuple[Tensor, Tensor]]

#: Steps before the recording, in which libraries choose their algorithms and the optimizer creates its state.
_STEPS_BEFORE = 3
#: The packages whose layers only compute with tensors. Other layers may run Python code that a graph does not repeat.
_PACKAGES = ("torch", "fastconv")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def supports(device: torch.device) -> bool:
    """Return whether steps on this device can be recorded."""
    return device.type == "cuda"


class GraphedStep:
    """``step(*inputs)``, replayed from a CUDA graph after a few ordinary runs.

    The graph is recorded for the largest shapes of the inputs. Smaller inputs, such as the last batch of an epoch, run
    without the graph. If the program changes an address or a setting that the graph has recorded, the step is recorded
    again. The returned tensors are valid until the next call.

    Args:
        step: must not read values from the GPU, and must keep no tensors except parameters and the optimizer's state.
        model, optimizer: what the step trains.
        obstacle: why the step must not be recorded, if the caller knows a reason. A warning names it once.
    """

    def __init__(self, step: Step, model: nn.Module, optimizer: Optimizer, obstacle: str = "") -> None:
        self._step, self._model, self._optimizer = step, model, optimizer
        self._shapes: list[torch.Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._side: torch.cuda.Stream | None = None
        self._given_up = False
        if obstacle:
            self._give_up(obstacle)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        shapes = [value.shape for value in inputs]
        if self._shapes is None or shapes > self._shapes:
            self._shapes = shapes
            self._forget()
        if self._given_up or shapes != self._shapes:
            return self._step(*inputs)
        if self._graph is not None and self._recorded != self._fixed():
            self._forget()
        if self._graph is None:
            if self._steps < _STEPS_BEFORE:
                self._steps += 1
                return self._on_a_side_stream(inputs)
            self._record(inputs)
            if self._graph is None:
                return self._step(*inputs)
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value)
        self._graph.replay()
        for parameter, grad in self._gradients:  # an ordinary step has put other tensors there
            parameter.grad = grad
        return self._results

    def _forget(self) -> None:
        self._graph, self._steps = None, 0

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        warnings.warn(
            f"the training step runs without a CUDA graph, because {reason}. The results are the same, but a small"
            " network trains more slowly.",
            stacklevel=2,
        )

    def _on_a_side_stream(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Run on another stream, because a recording cannot wait for work of the default stream."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            results = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        return results

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        obstacle = _obstacle(self._model, self._optimizer)
        if obstacle:
            self._give_up(obstacle)
            return
        self._recorded = self._fixed()
        self._inputs = [value.clone() for value in inputs]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: the threads of a DataLoader may allocate memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._step(*self._inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # the failed recording has left its own stream current
            self._give_up(f"its recording failed ({str(error).partition(chr(10))[0]})")
            return
        self._graph = graph
        self._gradients = [(parameter, parameter.grad) for parameter in weights(self._optimizer)]

    def _fixed(self) -> list[object]:
        """Return what a replay cannot change: the addresses of tensors, and the settings of layers and optimizer."""
        fixed: list[object] = [_hooks(self._model, self._optimizer)]
        for module in self._model.modules():
            for tensors in (module._parameters, module._buffers):
                fixed += [(t.data_ptr(), t.requires_grad) for t in tensors.values() if t is not None]
            settings = vars(module).items()
            fixed += [v for name, v in settings if name[0] != "_" and isinstance(v, bool | int | float | str | tuple)]
        for group in self._optimizer.param_groups:
            fixed += [_address(value) for name, value in group.items() if name != "params"]
        for state in self._optimizer.state.values():
            fixed += [_address(value) for value in state.values()]
        return fixed


def _address(value: object) -> object:
    return value.data_ptr() if isinstance(value, Tensor) else value


def weights(optimizer: Optimizer) -> Iterator[Tensor]:
    """Iterate over the weights that the optimizer updates."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _hooks(model: nn.Module, optimizer: Optimizer) -> int:
    """Return the number of hooks, which are functions of the program. A replay does not call them."""
    counts = [len(getattr(module, name)) for module in model.modules() for name in _HOOKS]
    counts += [len(getattr(weight, name) or ()) for weight in weights(optimizer) for name in _WEIGHT_HOOKS]
    return sum(counts) + sum(len(getattr(optimizer, name)) for name in _OPTIMIZER_HOOKS)


def _obstacle(model: nn.Module, optimizer: Optimizer) -> str:
    """Return why a step must not be recorded, or an empty string."""
    for module in model.modules():
        if type(module).__module__.partition(".")[0] not in _PACKAGES:
            return f"{type(module).__name__} has its own forward(), which may do more than compute with tensors"
    return "there are hooks, which a graph does not call" if _hooks(model, optimizer) else ""
