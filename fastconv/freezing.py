"""Freeze a model for inference: fold its batch norms, fuse its blocks and pack its weights, once and for all."""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastconv._ahead.layers import activation_of
from fastconv._layer import is_observed
from fastconv._ops.batch_norm import Activation
from fastconv._ops.library import _C, FLOATING_DTYPES
from fastconv.conversion import convert, revert

__all__ = ["freeze"]

_conv2d_inference = torch.ops.fastconv.conv2d_inference.default


def freeze(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference with its values as they are now.

    Batch norms are folded into the convolutions before them. A residual and an activation are computed with their
    convolution. The weights are packed in the first call and never compared again, so later changes of the frozen
    weights have no effect. The model itself does not change.

    ``torch.fx`` traces the model once. So the copy does what the model does for every input only if no ``if`` or loop
    depends on the input. A model that cannot be traced is converted instead (:func:`fastconv.convert`), with packed
    weights.

    Args:
        model: a model in evaluation mode, on the CPU.

    Returns:
        A module with the arguments and results of the model. ``train()`` raises an error.

    Raises:
        TypeError: the model is not a module.
        RuntimeError: the model is in training mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.allclose(freeze(model)(x), model(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze() takes a torch.nn.Module, but got {type(model).__name__}")
    if model.training:
        raise RuntimeError("freeze() takes a model in evaluation mode: call model.eval() first")
    plain = revert(copy.deepcopy(model)).requires_grad_(False)
    try:
        graph = None if is_observed(plain) else _Tracer().trace(plain)
    except Exception:  # whatever the model does that a tracer cannot follow
        graph = None
    if graph is None:
        for module in plain.modules():
            if type(module) is nn.Conv2d:
                _freeze_weight(module, module.weight)
        return _FrozenCopy(convert(plain)).eval()
    _fuse(plain, graph)
    return convert(_FrozenGraph(plain, graph, f"Frozen{type(model).__name__}")).eval()


class _Tracer(fx.Tracer):
    """Keeps modules whose hooks see them run."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_observed(m) or super().is_leaf_module(m, module_qualified_name)


class _Frozen(nn.Module):
    """Refuses to train."""

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise RuntimeError("a frozen model cannot be trained: train the model itself, and freeze() it again")
        return super().train(False)


class _FrozenGraph(_Frozen, fx.GraphModule):
    """A model that was traced."""


class _FrozenCopy(_Frozen):
    """A model that was not traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def _freeze_weight(module: nn.Module, weight: Tensor) -> None:
    """Have the operators pack this weight once, while the module exists."""
    alias = weight.detach()  # keeps the memory, even if the parameter gets other values
    _C.freeze_weight(alias.data_ptr())
    weakref.finalize(module, _release, alias)


def _release(alias: Tensor) -> None:
    _C.release_weight(alias.data_ptr())


class FrozenConv2d(nn.Module):
    """A convolution with a folded batch norm, followed by an addition and an activation where there are some."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: Activation, slope: float) -> None:
        super().__init__()
        weight, bias = _folded(conv, norm)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.numbers = (conv.stride, conv.padding, conv.dilation, conv.groups, 0.0, activation, slope)
        self.eval()
        _freeze_weight(self, weight)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        buffers = self._buffers
        weight, bias = buffers["weight"], buffers["bias"]
        if self._can_run(input, weight, residual):
            return _conv2d_inference(  # type: ignore[no-any-return]
                input, weight, bias, None, None, None, None, residual, *self.numbers
            )
        stride, padding, dilation, groups, _, activation, slope = self.numbers
        y = F.conv2d(input, self.weight, self.bias, stride, padding, dilation, groups)
        y = y if residual is None else y + residual
        return _FUNCTIONS[activation](y, slope)

    @staticmethod
    def _can_run(input: Tensor, weight: Any, residual: Tensor | None) -> bool:
        """Return whether the operator supports the call, which needs no gradient."""
        if type(input) is not Tensor or input.dtype is not weight.dtype or not input.is_cpu or input.dim() != 4:
            return False
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and input.requires_grad):
            return False
        if residual is None:
            return True
        grad = torch.is_grad_enabled() and residual.requires_grad
        return type(residual) is Tensor and residual.dtype is weight.dtype and not grad and residual.dim() == 4

    def extra_repr(self) -> str:
        K, C, *kernel = self.weight.shape
        stride, padding, _, groups, _, activation, _ = self.numbers
        numbers = f"stride={stride}, padding={padding}, groups={groups}"
        return f"{C * groups}, {K}, {tuple(kernel)}, {numbers}, {activation.name}"


_FUNCTIONS: dict[Activation, Callable[[Tensor, float], Tensor]] = {
    Activation.NONE: lambda y, _: y,
    Activation.RELU: lambda y, _: F.relu(y),
    Activation.RELU6: lambda y, _: F.relu6(y),
    Activation.LEAKY_RELU: F.leaky_relu,
    Activation.HARDSWISH: lambda y, _: F.hardswish(y),
    Activation.SILU: lambda y, _: F.silu(y),
}


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of a convolution and a batch norm, rounded once."""
    weight, bias = conv.weight.detach(), conv.bias
    if norm is None:
        return weight.clone(), None if bias is None else bias.detach().clone()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = (0 if bias is None else bias.detach().double()) - norm.running_mean.double()
    shift = shift * scale + (0 if norm.bias is None else norm.bias.detach().double())
    return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


# ---- the graph ---------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """The nodes of a convolution and of what is computed with it."""

    conv: fx.Node
    norm: fx.Node | None
    addition: fx.Node | None
    activation: fx.Node | None

    def nodes(self) -> list[fx.Node]:
        return [node for node in (self.activation, self.addition, self.norm, self.conv) if node is not None]


def _fuse(model: nn.Module, graph: fx.Graph) -> None:
    """Replace blocks of the graph by FrozenConv2d, in place."""
    modules = dict(model.named_modules())
    for count, conv in enumerate([node for node in graph.nodes if _is_convolution(node, modules)]):
        block = _block(conv, graph, modules)
        activation, slope = _activation(block.activation, modules)
        norm = None if block.norm is None else modules[str(block.norm.target)]
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        layer = modules[str(conv.target)]
        assert isinstance(layer, nn.Conv2d)
        name = f"fastconv_frozen_{count}"
        model.add_module(name, FrozenConv2d(layer, norm, activation, slope))
        last = block.nodes()[0]
        arguments: tuple[Any, ...] = conv.args
        if block.addition is not None:
            before = conv if block.norm is None else block.norm
            arguments = (*arguments, next(a for a in block.addition.args if a is not before))
        with graph.inserting_before(last):
            fused = graph.call_module(name, arguments)
        last.replace_all_uses_with(fused)
        for node in block.nodes():
            graph.erase_node(node)


def _is_convolution(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.is_cpu
        and layer.weight.dtype in FLOATING_DTYPES
        and len(node.args) == 1
        and not node.kwargs
        and not is_observed(layer)
    )


def _block(conv: fx.Node, graph: fx.Graph, modules: dict[str, nn.Module]) -> _Block:
    """Find what can be computed with a convolution."""
    norm = addition = activation = None
    last = conv
    following = _only_user(last)
    if following is not None and _is_norm(following, modules):
        norm = last = following
        following = _only_user(last)
    if following is not None and _is_addition(following, last) and _nothing_changes(conv, following, graph, modules):
        addition = last = following
        following = _only_user(last)
    if following is not None and _activation(following, modules)[0] is not Activation.NONE:
        activation = following
    return _Block(conv, norm, addition, activation)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return type(layer) is nn.BatchNorm2d and layer.running_mean is not None and not is_observed(layer)


def _is_addition(node: fx.Node, before: fx.Node) -> bool:
    """Return whether a node adds a tensor to the node ``before``."""
    if node.op != "call_function" or node.target not in (operator.add, operator.iadd, torch.add) or node.kwargs:
        return False
    others = [argument for argument in node.args if argument is not before]
    changes_other = node.target is operator.iadd and node.args[0] is not before
    return len(node.args) == 2 and len(others) == 1 and isinstance(others[0], fx.Node) and not changes_other


def _nothing_changes(conv: fx.Node, until: fx.Node, graph: fx.Graph, modules: dict[str, nn.Module]) -> bool:
    """Return whether no node between the two may change a tensor in place. The convolution then may run later."""
    nodes = list(graph.nodes)
    between = nodes[nodes.index(conv) + 1 : nodes.index(until)]
    return not any(_may_change(node, modules) for node in between)


def _may_change(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        layer = modules.get(str(node.target))
        return layer is None or bool(getattr(layer, "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
    return in_place or name in ("iadd", "isub", "imul", "itruediv", "setitem") or node.kwargs.get("out") is not None


def _activation(node: fx.Node | None, modules: dict[str, nn.Module]) -> tuple[Activation, float]:
    """Return the activation that a node computes, with its slope. NONE for other nodes."""
    if node is None:
        return Activation.NONE, 0.0
    if node.op == "call_module":
        layer = modules.get(str(node.target))
        return (Activation.NONE, 0.0) if layer is None or is_observed(layer) else activation_of(layer)
    plain = node.op == "call_function" and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return activation_of(node.target) if plain else (Activation.NONE, 0.0)
