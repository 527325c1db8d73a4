"""A training step that is replayed from a CUDA graph.

A step of a small network launches about a hundred kernels. Each runs for a few microseconds, less than Python needs to
launch it. A CUDA graph records the kernels and their addresses once, and replays them in one call. Values that change
must stay at fixed addresses: each batch is copied to the same tensors, and the learning rate is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Steps before the recording, in which libraries choose their algorithms and the optimizer creates its state.
_STEPS_BEFORE = 3


class GraphedStep:
    """``step(images, target)``, replayed from a CUDA graph after a few ordinary runs.

    The graph is recorded for the shape of the first batch. A batch of another shape, such as the last of an epoch, runs
    without the graph. The returned tensors are valid until the next call.

    Args:
        step: must not read values from the GPU, and must keep no tensors except parameters and the optimizer's state.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._shape: torch.Size | None = None
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self._shape is None:
            self._shape = images.shape
        if images.shape != self._shape:
            return self._step(images, target)
        if self._graph is None:
            if self._steps < _STEPS_BEFORE:
                self._steps += 1
                return self._on_a_side_stream(images, target)
            self._record(images, target)
        assert self._graph is not None
        self._images.copy_(images)
        self._target.copy_(target)
        self._graph.replay()
        return self._results

    def _on_a_side_stream(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Run on another stream, because a recording cannot wait for work of the default stream."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            results = self._step(images, target)
        torch.cuda.current_stream().wait_stream(side)
        return results

    def _record(self, images: Tensor, target: Tensor) -> None:
        self._images, self._target = images.clone(), target.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = self._step(self._images, self._target)
