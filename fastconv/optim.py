"""Adam and AdamW: :mod:`torch.optim`'s, with less Python around PyTorch's fused kernel.

Between two passes over a small network, the interpreter's own code and data leave the caches, and PyTorch's step then
takes 0.3 ms more than its kernel. The shorter way here spares 0.2 of MnistCNN's 5.3 (Zen 3, 2 threads). Results are the
same, bit for bit: the same kernel, with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer, optimizer

__all__ = ["Adam", "AdamW"]

#: Parameters, gradients, averages, averages of squares, none of their maxima, steps: as PyTorch's kernel takes them.
Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class _Lean(Optimizer):
    """The shorter way of a step, for what is usual; all else goes PyTorch's."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none or _profiler_enabled():
            super().zero_grad(set_to_none)
        else:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        lists = None if closure is not None or self._is_observed() else self._lists()
        if lists is None:
            torch_step = self.profile_hook_step(_unhooked(super().step))
            return torch_step(self) if closure is None else torch_step(self, closure)
        with torch.no_grad():
            for group, of_group in zip(self.param_groups, lists, strict=True):
                if not of_group[0]:
                    continue
                steps = of_group[-1]
                if type(steps[0]) is Tensor and steps[0].is_cpu:
                    # A number would become a tensor for each of them: with ten parameters, 21 us for 12.
                    torch._foreach_add_(steps, torch.tensor(1.0, dtype=torch.float32, device="cpu"), alpha=1)
                else:
                    torch._foreach_add_(steps, 1)
                beta1, beta2 = group["betas"]
                kernel = torch._fused_adamw_ if group.get("decoupled_weight_decay") else torch._fused_adam_
                kernel(
                    *of_group, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                    eps=group["eps"], amsgrad=False, maximize=group["maximize"],
                )  # fmt: skip
        return None

    # Or PyTorch would wrap it into what `_is_observed` asks for.
    step.hooked = True  # type: ignore[attr-defined]

    def _is_observed(self) -> bool:
        """Whether someone sees a step begin and end, or scales its gradients."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks
            or optimizer._global_optimizer_post_hooks
            or _profiler_enabled()
            or torch.compiler.is_compiling()
            or getattr(self, "grad_scale", None) is not None
            or getattr(self, "found_inf", None) is not None
        )

    def _lists(self) -> list[Lists] | None:
        """What the kernel works on, for each group. None: something is not as usual, or there is no state yet."""
        result = []
        for group in self.param_groups:
            if not group["fused"] or group["amsgrad"] or group["capturable"] or isinstance(group["lr"], Tensor):
                return None
            kinds = set()
            lists: Lists = ([], [], [], [], [], [])
            parameters, gradients, averages, squares, _, steps = lists
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state.get(parameter)
                if not state or gradient.layout is not torch.strided or parameter.is_complex():
                    return None
                kinds.add((parameter.dtype, parameter.device))
                average, square = state["exp_avg"], state["exp_avg_sq"]
                if not parameter.is_contiguous():
                    parameter, gradient, average, square = _as_memory_lies(parameter, gradient, average, square)
                parameters.append(parameter)
                gradients.append(gradient)
                averages.append(average)
                squares.append(square)
                steps.append(state["step"])
            if len(kinds) > 1:  # PyTorch sorts them, which a GPU's kernel needs
                return None
            result.append(lists)
        return result


def _as_memory_lies(*tensors: Tensor) -> Iterable[Tensor]:
    """Of channels_last tensors, views that are contiguous.

    PyTorch's kernel goes by the memory in either case, but makes a contiguous copy first that nobody reads: 15 of the
    145 us of a step (MnistCNN, Zen 5, 2 threads).
    """
    if all(tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors):
        with torch.no_grad():
            return [tensor.permute(0, 2, 3, 1) for tensor in tensors]
    return tensors


def _unhooked(step: Any) -> Callable[..., Any]:
    """A bound method's function, without the hooks that PyTorch puts around it when it is first used."""
    function = step.__func__
    return function.__wrapped__ if getattr(function, "hooked", False) else function


class Adam(_Lean, torch.optim.Adam):
    """Adam (Kingma and Ba, arXiv 1412.6980): :class:`torch.optim.Adam`, ``fused`` unless told otherwise.

    Args:
        params, args, kwargs: those of :class:`torch.optim.Adam`. With ``fused=False`` it is no faster.

    Raises:
        ValueError, RuntimeError: as PyTorch's.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Adam(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step(), optimizer.zero_grad()
        (None, None)
    """

    def __init__(self, params: Any, *args: Any, fused: bool | None = True, **kwargs: Any) -> None:
        super().__init__(params, *args, fused=fused, **kwargs)


class AdamW(_Lean, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101): as :class:`Adam`.

    Args:
        params, args, kwargs: those of :class:`torch.optim.AdamW`.
    """

    def __init__(self, params: Any, *args: Any, fused: bool | None = True, **kwargs: Any) -> None:
        super().__init__(params, *args, fused=fused, **kwargs)
