"""Freeze the parts of a model that cannot be recorded as a whole.

Many models cannot be recorded because of a few lines at the top: an optional argument, a result in a dictionary, a
check of the input's size. The stages and blocks below are plain. Each of them that takes one tensor gets the chains of
its record. The module itself stays, with its class, layers and attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastconv._frozen.state import Sealed

__all__ = ["FrozenPart", "freeze_parts", "frozen_parts"]

#: Returns the frozen copy of a module, or None if it cannot be recorded or has nothing to fuse.
Freeze = Callable[[nn.Module], nn.Module | None]


class FrozenPart(Sealed):
    """The ``forward`` of a module that was recorded.

    The record holds for one tensor, and for the attributes, layers, hooks and values that the module had when it was
    frozen. The model may change them in each call. Then the module's own ``forward`` runs. A compiled model uses that
    one, too.
    """

    def __init__(self, module: nn.Module, frozen: nn.Module) -> None:
        super().__init__(module)
        self.frozen = frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_one_tensor = len(args) == 1 and type(args[0]) is Tensor and not kwargs
        if is_one_tensor and not torch.compiler.is_compiling() and self.is_unchanged():
            return self.frozen(args[0])
        return type(self.module).forward(self.module, *args, **kwargs)


def frozen_parts(model: nn.Module) -> Iterator[FrozenPart]:
    """Yield the parts of a model that run as frozen copies."""
    for module in model.modules():
        part = vars(module).get("forward")
        if isinstance(part, FrozenPart):
            yield part


def freeze_parts(model: nn.Module, freeze: Freeze) -> None:
    """Let the largest parts of a model that can be recorded run as frozen copies, in place.

    Call ``seal()`` on each part afterwards.
    """
    seen: set[nn.Module] = set()

    def visit(parent: nn.Module) -> None:
        for module in parent.children():
            if module in seen or not module._modules:
                continue
            seen.add(module)
            frozen = freeze(module) if _takes_one_argument(module) else None
            if frozen is None:
                visit(module)
            else:
                vars(module)["forward"] = FrozenPart(module, frozen)

    visit(model)


def _takes_one_argument(module: nn.Module) -> bool:
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a function of C++
        return False
    return len(parameters) == 1 and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
