"""The graph of a frozen model: finds what runs with each convolution and batch norm, and joins those in a row."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastconv._ahead.layers import activation_of
from fastconv._frozen.layers import FrozenChain, FrozenLinear, Step
from fastconv._layer import is_observed
from fastconv._ops.batch_norm import Activation
from fastconv._ops.library import FLOATING_DTYPES

__all__ = ["IN_PLACE", "fuse"]

Modules = dict[str, nn.Module]

#: The functions of ``a += b`` and the like, which may change a.
IN_PLACE: dict[Any, str] = {
    getattr(operator, f"i{name}"): f"__i{name}__"
    for name in (
        "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift",
    )
}  # fmt: skip

#: Layers that return their input in evaluation mode.
_NO_OPERATIONS = (nn.Identity, nn.Dropout)


class _Block(NamedTuple):
    """The nodes of a convolution, or of a batch norm that follows none, and of what is computed with it."""

    first: fx.Node
    norm: fx.Node | None
    addition: fx.Node | None
    activation: fx.Node | None

    def nodes(self) -> list[fx.Node]:
        """Return the nodes, last first."""
        return [node for node in (self.activation, self.addition, self.norm, self.first) if node is not None]

    def read(self) -> list[fx.Node]:
        """Return the nodes whose results the block reads: the first node's input, and what is added."""
        read = [argument for argument in self.first.args if isinstance(argument, fx.Node)]
        if self.addition is not None:
            before = self.first if self.norm is None else self.norm
            read += [a for a in self.addition.args if isinstance(a, fx.Node) and a is not before]
        return read


def fuse(model: nn.Module, graph: fx.Graph) -> None:
    """Replace convolutions and batch norms by chains, and linear layers by frozen ones, in place."""
    modules = dict(model.named_modules())
    for node in [node for node in graph.nodes if _does_nothing(node, modules)]:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    blocks = {}
    for begins in (_is_convolution, _is_lone_norm):
        for first in [node for node in graph.nodes if begins(node, modules)]:
            block = _block(first, graph, modules)
            blocks[_join(block, graph)] = block
    for count, run in enumerate(_runs(graph, blocks)):
        name = f"fastconv_chain_{count}"
        read = _read_by(run)
        chain, results = _chain(run, read, blocks, modules)
        model.add_module(name, chain)
        _replace(run, results, graph, name, read)
    for count, node in enumerate([node for node in graph.nodes if _is_linear(node, modules)]):
        name = f"fastconv_linear_{count}"
        layer = modules[str(node.target)]
        assert isinstance(layer, nn.Linear)
        model.add_module(name, FrozenLinear(layer))
        node.target = name


def _join(block: _Block, graph: fx.Graph) -> fx.Node:
    """Replace the nodes of a block by one node, which reads what the block reads. Return it."""
    nodes = block.nodes()
    with graph.inserting_before(nodes[0]):
        joined = graph.call_function(_Block, tuple(block.read()))
    nodes[0].replace_all_uses_with(joined)
    for node in nodes:
        graph.erase_node(node)
    return joined


def _runs(graph: fx.Graph, blocks: dict[fx.Node, _Block]) -> list[list[fx.Node]]:
    """Return lists of joined nodes without another node between. So no node moves past another one."""
    runs: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if node in blocks:
            runs[-1].append(node)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _read_by(run: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes outside of a run whose results it reads."""
    read = dict.fromkeys(a for node in run for a in node.args if isinstance(a, fx.Node))
    return [node for node in read if node not in run]


def _chain(
    run: list[fx.Node], read: list[fx.Node], blocks: dict[fx.Node, _Block], modules: Modules
) -> tuple[FrozenChain, list[fx.Node]]:
    """Return the chain of a run, and the nodes whose results it returns."""
    number: dict[Any, int] = {node: i for i, node in enumerate([*read, *run])}
    steps, values = [], []
    for node in run:
        block = blocks[node]
        layer = modules[str(block.first.target)]
        norm = None if block.norm is None else modules[str(block.norm.target)]
        stride: tuple[int, ...] = (1, 1)
        padding: tuple[int, ...] = (0, 0)
        dilation, groups = stride, 1
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups
            values.append(_folded(layer, norm))
        else:
            scale, shift = _scale_and_shift(layer)
            dtype = layer.get_buffer("running_mean").dtype
            values.append((scale.to(dtype), shift.to(dtype)))
        residual = number[node.args[1]] if len(node.args) > 1 else -1
        in_place = block.addition is not None and block.addition.target in IN_PLACE
        numbers = (stride, padding, dilation, groups, *_activation(block.activation, modules))
        steps.append(Step(number[node.args[0]], residual, in_place, *numbers))
    results = [node for node in run if any(user not in number for user in node.users)]
    return FrozenChain(steps, values, [number[node] for node in results]), results


def _replace(run: list[fx.Node], results: list[fx.Node], graph: fx.Graph, name: str, read: list[fx.Node]) -> None:
    """Replace the nodes of a run by a call of its chain."""
    with graph.inserting_after(run[-1]):
        chain = graph.call_module(name, tuple(read))
    if len(results) == 1:
        results[0].replace_all_uses_with(chain, delete_user_cb=lambda user: user not in run)
    else:
        for i, node in enumerate(results):
            with graph.inserting_after(chain):
                item = graph.call_function(operator.getitem, (chain, i))
            node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in run)
    for node in reversed(run):
        graph.erase_node(node)


def _is_convolution(node: fx.Node, modules: Modules) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.is_cpu
        and layer.weight.dtype in FLOATING_DTYPES
        and [type(argument) for argument in node.args] == [fx.Node]
        and not node.kwargs
        and not is_observed(layer)
    )


def _does_nothing(node: fx.Node, modules: Modules) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    plain = [type(argument) for argument in node.args] == [fx.Node] and not node.kwargs
    return isinstance(layer, nn.Module) and type(layer) in _NO_OPERATIONS and plain and not is_observed(layer)


def _is_linear(node: fx.Node, modules: Modules) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(layer) is nn.Linear
        and layer.weight.is_cpu
        and layer.weight.dtype is torch.float32
        and layer.weight.numel() >= FrozenLinear.least_weight
        and len(node.args) == 1
        and not node.kwargs
        and not is_observed(layer)
    )


def _block(first: fx.Node, graph: fx.Graph, modules: Modules) -> _Block:
    """Find what can be computed with a convolution or a batch norm."""
    norm = addition = activation = None
    last = first

    def following() -> fx.Node | None:
        """Return the only node that uses the result so far, if the first node may as well run just before it."""
        user = _only_user(last)
        return user if user is not None and _nothing_changes(first, user, graph, modules) else None

    user = following()
    if user is not None and _is_norm(user, modules) and _is_convolution(first, modules):
        norm = last = user
        user = following()
    if user is not None and _is_addition(user, last):
        addition = last = user
        user = following()
    if user is not None and _activation(user, modules)[0] is not Activation.NONE:
        activation = user
    return _Block(first, norm, addition, activation)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_norm(node: fx.Node, modules: Modules) -> bool:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return type(layer) is nn.BatchNorm2d and layer.running_mean is not None and not is_observed(layer)


def _is_lone_norm(node: fx.Node, modules: Modules) -> bool:
    """Return whether a node is a batch norm that no convolution computes. In 16 bits, its constants are float32."""
    if not _is_norm(node, modules) or [type(argument) for argument in node.args] != [fx.Node] or node.kwargs:
        return False
    mean = getattr(modules[str(node.target)], "running_mean", None)
    return isinstance(mean, Tensor) and mean.is_cpu and mean.dtype in (torch.float32, torch.float64)


def _is_addition(node: fx.Node, before: fx.Node) -> bool:
    """Return whether a node adds a tensor to the node ``before``."""
    if node.op != "call_function" or node.target not in (operator.add, operator.iadd, torch.add) or node.kwargs:
        return False
    others = [argument for argument in node.args if argument is not before]
    changes_other = node.target is operator.iadd and node.args[0] is not before
    return len(node.args) == 2 and len(others) == 1 and isinstance(others[0], fx.Node) and not changes_other


def _nothing_changes(first: fx.Node, until: fx.Node, graph: fx.Graph, modules: Modules) -> bool:
    """Return whether no node between the two may change a tensor in place. The first node may then run later."""
    nodes = list(graph.nodes)
    between = nodes[nodes.index(first) + 1 : nodes.index(until)]
    return not any(_may_change(node, modules) for node in between)


def _may_change(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_module":
        layer = modules.get(str(node.target))
        return layer is None or bool(getattr(layer, "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
    return in_place or node.target in IN_PLACE or node.kwargs.get("out") is not None


def _activation(node: fx.Node | None, modules: Modules) -> tuple[Activation, float]:
    """Return the activation that a node computes, with its slope. NONE for other nodes."""
    if node is None:
        return Activation.NONE, 0.0
    if node.op == "call_module":
        layer = modules.get(str(node.target))
        return (Activation.NONE, 0.0) if layer is None or is_observed(layer) else activation_of(layer)
    plain = node.op == "call_function" and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return activation_of(node.target) if plain else (Activation.NONE, 0.0)


def _folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution and a batch norm, rounded once."""
    weight, bias = conv.weight.detach(), conv.bias
    if norm is None:
        return weight.clone(), weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
    scale, shift = _scale_and_shift(norm)
    shift = shift if bias is None else shift + bias.detach().double() * scale
    return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the constants of ``x * scale + shift``, which a batch norm computes in evaluation, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()
