"""A training step that a GPU does at one word.

A step of a small network is a hundred kernels of a few microseconds, and Python takes longer to ask for each. A CUDA
graph records them once, with their memory, and repeats them by one call. So all that changes from step to step must
stand in memory that stays: images and labels are copied there, and the learning rate is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Steps by themselves first: libraries choose their algorithms, and the optimizer makes its state.
_STEPS_BEFORE = 3


class GraphedStep:
    """``step(images, target)``, repeated from a CUDA graph once it has run a few times.

    The first shape that comes is the one that is recorded; a batch of another one, as the last of an epoch may be, is
    done kernel by kernel. What is returned is valid until the next call.

    Args:
        step: reads no value back from the GPU, and keeps no tensor besides parameters and the optimizer's state.
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
        """Recording takes a stream of its own, and what was made on the default stream cannot be waited for there."""
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
