"""Freeze the parts of a model that cannot be recorded as a whole.

Many models cannot be recorded because of a few lines at the top: an optional argument, a result in a dictionary, a
check of the input's size. The stages and blocks below are plain. Each of them that takes one tensor gets the chains of
its record. The module itself stays, with its class, layers and attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["freeze_parts"]

#: Returns the frozen copy of a module, or None if it cannot be recorded or has nothing to fuse.
Freeze = Callable[[nn.Module], nn.Module | None]


class _FrozenPart:
    """The ``forward`` of a module that was recorded."""

    def __init__(self, module: nn.Module, frozen: nn.Module) -> None:
        self.module, self.frozen = module, frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The record holds for one tensor. A None or a tuple may take another branch.
        if len(args) == 1 and type(args[0]) is Tensor and not kwargs and not self.module.training:
            return self.frozen(args[0])
        return type(self.module).forward(self.module, *args, **kwargs)


def freeze_parts(model: nn.Module, freeze: Freeze) -> None:
    """Let the largest parts of a model that can be recorded run as frozen copies, in place."""
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
                vars(module)["forward"] = _FrozenPart(module, frozen)

    visit(model)


def _takes_one_argument(module: nn.Module) -> bool:
    parameters = list(inspect.signature(module.forward).parameters.values())
    return len(parameters) == 1 and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
