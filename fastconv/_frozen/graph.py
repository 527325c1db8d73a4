"""Group each convolution or batch norm with its addition and activation, and merge adjacent groups into one call."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastconv._ahead.layers import activation_of
from fastconv._frozen.folded import Folded, folded_values, scale_and_shift
from fastconv._frozen.layers import Addition, FrozenChain, FrozenLinear, Step
from fastconv._frozen.record import IN_PLACE
from fastconv._layer import is_observed
from fastconv._ops.batch_norm import Activation
from fastconv._ops.library import FLOATING_DTYPES

__all__ = ["fuse"]

Modules = dict[str, nn.Module]

#: Layers that return their input in evaluation mode.
_NO_OPERATIONS = (nn.Identity, nn.Dropout)


class _Block(NamedTuple):
    """A convolution and its batch norm, or a batch norm without a convolution, and their addition and activation."""

    first: fx.Node
    norm: fx.Node | None
    addition: fx.Node | None
    activation: fx.Node | None
    order: Addition  # how the residual is added

    def nodes(self) -> list[fx.Node]:
        """Return the nodes, last first."""
        return [node for node in (self.activation, self.addition, self.norm, self.first) if node is not None]

    def read(self) -> list[fx.Node]:
        """Return the nodes whose results the block reads: the first node's input and the residual."""
        read = [argument for argument in self.first.args if isinstance(argument, fx.Node)]
        if self.addition is not None:
            before = self.first if self.norm is None else self.norm
            read += [a for a in self.addition.args if isinstance(a, fx.Node) and a is not before]
        return read


def fuse(model: nn.Module, graph: fx.Graph, folded: Folded) -> None:
    """Replace convolutions and batch norms by chains, and linear layers by frozen ones, in place.

    Args:
        model: the modules that the graph calls. It gets the chains.
        graph: the record of the model.
        folded: the weights of other graphs of the same tensors. This graph uses and adds to them.
    """
    modules = dict(model.named_modules())
    for node in [node for node in graph.nodes if _does_nothing(node, modules)]:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    for node in [node for node in graph.nodes if _is_convolution(node, modules)]:
        _join_padding(node, graph, modules)
    blocks = {}
    for begins in (_is_convolution, _is_lone_norm):
        for first in [node for node in graph.nodes if begins(node, modules)]:
            block = _block(first, modules)
            blocks[_join(block, graph)] = block
    for count, run in enumerate(_runs(graph, blocks)):
        name = _free_name(model, f"fastconv_chain_{count}")
        read = _read_by(run)
        chain, results = _chain(run, read, blocks, modules, folded)
        model.add_module(name, chain)
        _replace(run, results, graph, name, read)
    for count, node in enumerate([node for node in graph.nodes if _is_linear(node, modules)]):
        name = _free_name(model, f"fastconv_linear_{count}")
        layer = modules[str(node.target)]
        assert isinstance(layer, nn.Linear)
        model.add_module(name, FrozenLinear(*folded_values(layer, None, folded)))
        node.target = name


def _free_name(model: nn.Module, name: str) -> str:
    return _free_name(model, f"{name}_") if hasattr(model, name) else name


def _join(block: _Block, graph: fx.Graph) -> fx.Node:
    """Replace the nodes of a block by one node, which reads what the block reads. Return it."""
    nodes = block.nodes()
    with graph.inserting_before(nodes[0]):
        joined = graph.call_function(_Block, tuple(block.read()))
    nodes[0].replace_all_uses_with(joined)
    for node in nodes:
        graph.erase_node(node)
    return joined


def _join_padding(conv: fx.Node, graph: fx.Graph, modules: Modules) -> None:
    """Let a convolution add the zeros that ``F.pad`` adds to its input, if there are as many on both sides."""
    pad = conv.args[0]
    if not isinstance(pad, fx.Node) or pad.target is not F.pad or len(pad.args) != 2 or _only_user(pad) is not conv:
        return
    sizes: Any = pad.args[1]
    is_zero = pad.kwargs.get("mode", "constant") == "constant" and pad.kwargs.get("value") in (None, 0)
    is_known = isinstance(sizes, tuple | list) and len(sizes) == 4 and all(type(n) is int and n >= 0 for n in sizes)
    if not is_zero or not is_known or sizes[0::2] != sizes[1::2] or not _nothing_changes(pad, conv, (), modules):
        return
    conv.args = (pad.args[0],)
    conv.meta["zeros"] = sizes[2], sizes[0]
    graph.erase_node(pad)


def _runs(graph: fx.Graph, blocks: dict[fx.Node, _Block]) -> list[list[fx.Node]]:
    """Return the lists of joined nodes that follow each other. Merging a list does not change the order of nodes."""
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
    run: list[fx.Node], read: list[fx.Node], blocks: dict[fx.Node, _Block], modules: Modules, folded: Folded
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
            stride, dilation, groups = layer.stride, layer.dilation, layer.groups
            padding = tuple(map(operator.add, layer.padding, block.first.meta.get("zeros", padding)))
            values.append(folded_values(layer, norm, folded))
        else:
            scale, shift = scale_and_shift(layer)
            dtype = layer.get_buffer("running_mean").dtype
            values.append((scale.to(dtype), shift.to(dtype)))
        residual = number[node.args[1]] if len(node.args) > 1 else -1
        addition, has_norm = block.order, norm is not None or not isinstance(layer, nn.Conv2d)
        numbers = (stride, padding, dilation, groups, *_activation(block.activation, modules))
        in_place = _is_in_place(block.activation, modules)
        steps.append(Step(number[node.args[0]], residual, addition, has_norm, *numbers, in_place))
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


def _layer(node: fx.Node, modules: Modules) -> nn.Module | None:
    """Return the layer that a node calls with one result of another node. None for other nodes, and with hooks."""
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    is_plain = [type(argument) for argument in node.args] == [fx.Node] and not node.kwargs
    return layer if layer is not None and is_plain and not is_observed(layer) else None


def _is_convolution(node: fx.Node, modules: Modules) -> bool:
    layer = _layer(node, modules)
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.is_cpu
        and layer.weight.dtype in FLOATING_DTYPES
    )


def _does_nothing(node: fx.Node, modules: Modules) -> bool:
    layer = _layer(node, modules)
    return layer is not None and type(layer) in _NO_OPERATIONS and not layer.training


def _is_linear(node: fx.Node, modules: Modules) -> bool:
    layer = _layer(node, modules)
    return (
        type(layer) is nn.Linear
        and layer.weight.is_cpu
        and layer.weight.dtype is torch.float32
        and layer.weight.numel() >= FrozenLinear.least_weight
    )


def _block(first: fx.Node, modules: Modules) -> _Block:
    """Return the block that begins with a convolution or a batch norm."""
    norm = addition = activation = None
    order = Addition.NONE
    last = first

    def following() -> fx.Node | None:
        """Return the only user of the result so far. None if something may change in place between it and `first`."""
        user = _only_user(last)
        return user if user is not None and _nothing_changes(first, user, (norm, addition), modules) else None

    user = following()
    if user is not None and _is_norm(user, modules) and _is_convolution(first, modules):
        norm = last = user
        user = following()
    if user is not None and _is_addition(user, last):
        order = Addition.AFTER if user.args[0] is last else Addition.BEFORE
        order = Addition.IN_PLACE if user.target in IN_PLACE else order
        addition = last = user
        user = following()
    if user is not None and _activation(user, modules)[0] is not Activation.NONE:
        activation = user
    return _Block(first, norm, addition, activation, order)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_norm(node: fx.Node, modules: Modules) -> bool:
    layer = _layer(node, modules)
    return type(layer) is nn.BatchNorm2d and not layer.training and layer.running_mean is not None


def _is_lone_norm(node: fx.Node, modules: Modules) -> bool:
    """Return whether a node is a batch norm that is not folded. In 16 bits, its constants would be rounded."""
    if not _is_norm(node, modules):
        return False
    mean = modules[str(node.target)].get_buffer("running_mean")
    return mean.is_cpu and mean.dtype in (torch.float32, torch.float64)


def _is_addition(node: fx.Node, before: fx.Node) -> bool:
    """Return whether a node adds another node's result to ``before``."""
    if node.op != "call_function" or node.kwargs:
        return False
    in_place = IN_PLACE.get(node.target) == "__iadd__"
    if not in_place and node.target not in (operator.add, torch.add):
        return False
    others = [argument for argument in node.args if argument is not before]
    changes_other = in_place and node.args[0] is not before
    return len(node.args) == 2 and len(others) == 1 and isinstance(others[0], fx.Node) and not changes_other


def _nothing_changes(first: fx.Node, until: fx.Node, own: tuple[fx.Node | None, ...], modules: Modules) -> bool:
    """Return whether no node between the two may change a tensor in place. The first node may then run later.

    The nodes in ``own`` belong to the same block. They change only its result.
    """
    node = first.next
    while node is not until:
        if node not in own and _may_change(node, modules):
            return False
        node = node.next
    return True


def _may_change(node: fx.Node, modules: Modules) -> bool:
    """Return whether a node may change a tensor in place: false only for what is known to change none."""
    if node.op == "call_module":
        return not _is_pure(modules.get(str(node.target)))
    if (
        bool(node.kwargs.get("inplace"))
        or node.kwargs.get("out") is not None
        or any(argument is True for argument in node.args)
    ):
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") or not hasattr(Tensor, name)
    if node.op != "call_function" or node.target in (_Block, getattr):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = getattr(node.target, "__name__", "")
    known = any(getattr(place, name, None) is node.target for place in (torch, nn.functional, operator))
    return not known or name.endswith("_") or name in ("setitem", "delitem")


def _is_pure(layer: nn.Module | None) -> bool:
    """Return whether a layer and all in it are PyTorch's, without hooks, and do not work in place."""
    return layer is not None and all(
        type(part).__module__.startswith("torch.nn.modules.")
        and not getattr(part, "inplace", False)
        and not is_observed(part)
        for part in layer.modules()
    )


def _activation(node: fx.Node | None, modules: Modules) -> tuple[Activation, float]:
    """Return the activation that a node computes, with its slope. NONE for other nodes."""
    if node is None:
        return Activation.NONE, 0.0
    if node.op == "call_module":
        layer = modules.get(str(node.target))
        return (Activation.NONE, 0.0) if layer is None or is_observed(layer) else activation_of(layer)
    plain = node.op == "call_function" and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return activation_of(node.target) if plain else (Activation.NONE, 0.0)


def _is_in_place(node: fx.Node | None, modules: Modules) -> bool:
    """Return whether an activation works in place."""
    if node is None:
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    return bool(node.kwargs.get("inplace")) or getattr(node.target, "__name__", "").endswith("_")
