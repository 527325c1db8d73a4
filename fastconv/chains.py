"""Finds, in the code of a model, the convolutions whose results go to a ReLU and a max-pool, and nowhere else.

A copy of the model (its parameters shared) is traced by torch.fx, once in training mode and once in evaluation mode; no
tensor is computed. What does not trace, for its control flow depends on data, is searched part by part.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from fastconv import nn as fnn
from fastconv.fuse import FusedConv2d, FusedMaxPool2d, FusedReLU

__all__ = ["Chain", "Chains", "find_chains", "in_sequentials"]

#: Classes that may be in a chain, before the model is converted or after, and what they are there.
ROLES: dict[type, str] = {
    torch.nn.Conv2d: "conv",
    fnn.Conv2d: "conv",
    FusedConv2d: "conv",
    torch.nn.ReLU: "relu",
    fnn.ReLU: "relu",
    FusedReLU: "relu",
    torch.nn.MaxPool2d: "pool",
    fnn.MaxPool2d: "pool",
    FusedMaxPool2d: "pool",
}
SEQUENTIALS = (torch.nn.Sequential, fnn.Sequential)


@dataclass(frozen=True)
class Chain:
    """A convolution, and the layers behind it of which it can do the work, of its ReLU and pool.

    relu is None where the ReLU is a function call in somebody's code. It stays: what is no longer negative, it does not
    change, and neither does it change the gradient.
    """

    conv: Module
    relu: Module | None
    pool: Module | None

    def followers(self) -> list[Module]:
        return [layer for layer in (self.relu, self.pool) if layer is not None]


@dataclass
class Chains:
    """What was found, and why there is no more."""

    chains: list[Chain] = field(default_factory=list)
    reasons: dict[Module, str] = field(default_factory=dict)  # of a convolution: why it is not fused
    untraced: dict[Module, str] = field(default_factory=dict)  # of a module: why torch.fx could not follow its code


def in_sequentials(model: Module) -> dict[Module, list[Chain]]:
    """The chains that each Sequential can run by itself."""
    found: dict[Module, list[Chain]] = {}
    for module in model.modules():
        layers = fnn.flat(module) if isinstance(module, torch.nn.Sequential) and type(module) in SEQUENTIALS else []
        i = 0
        while i < len(layers):
            block = fnn.match(layers, i, ROLES)
            if len(block) > 1:
                found.setdefault(module, []).append(make_chain(block))
            i += len(block)
    return found


def make_chain(block: Sequence[Module | None]) -> Chain:
    """From the layers in the order of the code; None is a ReLU that is a function."""
    roles = {"relu" if layer is None else fnn.role(layer, ROLES): layer for layer in block}
    conv = roles["conv"]
    assert conv is not None
    return Chain(conv, roles["relu"], roles.get("pool"))


@dataclass(frozen=True)
class Call:
    """A call of a convolution in somebody's code: its chain, or why it has none."""

    chain: Chain | None
    reason: str = ""
    by_sequential: bool = False  # all of it in the loop of one Sequential


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        # Of a module with hooks, someone sees what it takes and returns: nothing is fused across its border.
        layer = isinstance(m, torch.nn.Conv2d | torch.nn.ReLU | torch.nn.MaxPool2d)
        return layer or fnn.is_observed(m) or super().is_leaf_module(m, module_qualified_name)


class Search:
    """The calls of convolutions, ReLUs and pools in the code of a model, part by part where need be."""

    def __init__(self, model: Module) -> None:
        self.convs: dict[Module, list[Call]] = {}
        self.followers: dict[Module, list[Module | None]] = {}  # of a ReLU or pool, in each call: the convolution
        self.untraced: dict[Module, str] = {}
        pending, searched = [model], set()
        while pending:
            root = pending.pop()
            if root not in searched and root._modules:
                searched.add(root)
                pending += self.search(root)

    def search(self, root: Module) -> list[Module]:
        """Collects the calls in the code of ``root``. Returns the modules whose code is to be searched by itself."""
        if type(root).forward is Module.forward:  # ModuleList and its like
            return children(root)
        graphs = []
        for training in (True, False):
            for module in root.modules():
                module.training = training
            try:
                graphs.append(Tracer().trace(root))
            except Exception as error:  # whatever the model's code does with a tensor that is none
                self.untraced[root] = str(error).partition("\n")[0] or type(error).__name__
                return children(root)
        called: set[Module] = set()
        apart: list[Module] = []
        for graph in graphs:
            calls: dict[Node, Module] = {n: root.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"}
            for node in graph.nodes:
                called.update(stack_of(root, node))
            chained: dict[Node, Module] = {}
            for node, layer in calls.items():
                if ROLES.get(fnn.kind(layer)) == "conv":
                    call, nodes = follow(root, node, calls)
                    self.convs.setdefault(layer, []).append(call)
                    chained.update(dict.fromkeys(nodes, layer))
            for node, layer in calls.items():
                if ROLES.get(fnn.kind(layer)) in ("relu", "pool"):
                    self.followers.setdefault(layer, []).append(chained.get(node))
                elif fnn.is_observed(layer):
                    apart.append(layer)
                else:
                    apart += children(layer)
        return apart + list(uncalled(root, called))

    def result(self) -> Chains:
        chains: dict[Module, Chain] = {}
        reasons: dict[Module, str] = {}
        for conv, calls in self.convs.items():
            chain = calls[0].chain
            if any(call.chain is None for call in calls):
                reasons[conv] = next(call.reason for call in calls if call.chain is None)
            elif any(call.chain != chain for call in calls):
                reasons[conv] = "called several times, and other layers follow each time"
            elif chain is not None and not all(call.by_sequential for call in calls):
                chains[conv] = chain

        # A layer that hands on what it gets has to get it from such a convolution, in every call.
        def fails(chain: Chain) -> bool:
            before = [(layer, conv) for layer in chain.followers() for conv in self.followers[layer]]
            return any(conv not in chains or layer not in chains[conv].followers() for layer, conv in before)

        while failed := [chain for chain in chains.values() if fails(chain)]:
            for chain in failed:
                del chains[chain.conv]
                reasons[chain.conv] = "a layer behind it is called elsewhere, too"
        return Chains(list(chains.values()), reasons, self.untraced)


def children(module: Module) -> list[Module]:
    return [child for name, child in module.named_children() if name != "parametrizations"]


def uncalled(root: Module, called: set[Module]) -> Iterator[Module]:
    """The outermost modules that the code does not call. (Those of another method than forward, perhaps.)"""
    for child in children(root):
        if child not in called:
            yield child
        else:
            yield from uncalled(child, called)


def stack_of(root: Module, node: Node) -> list[Module]:
    """The modules in whose code a node is, the outermost first; of a layer's call, the layer too."""
    return [root.get_submodule(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]


def follow(root: Module, node: Node, calls: dict[Node, Module]) -> tuple[Call, list[Node]]:
    """What becomes of a convolution's result, and the nodes of the chain."""
    if fnn.is_observed(calls[node]):
        return Call(None, "it has hooks"), []
    nodes: list[Node] = [node]
    found: dict[str, Node] = {}
    reason = ""
    while len(found) < 2:
        users = list(nodes[-1].users)
        if len(users) != 1:
            reason = f"{len(users)} read its result"
            break
        what = reads(users[0], nodes[-1], calls)
        if what not in ("relu", "pool") or what in found:
            reason = what
            break
        found[what] = users[0]
        nodes.append(users[0])
    if list(found) == ["pool"]:
        reason = "no ReLU behind its pool"
    if "relu" not in found:
        return Call(None, reason), []
    if found["relu"] not in calls and "pool" not in found:
        return Call(None, "the ReLU behind it is a function, not a module"), []
    chain = make_chain([calls.get(each) for each in nodes])
    return Call(chain, by_sequential=runs_in_sequential(root, nodes)), nodes


def reads(user: Node, node: Node, calls: dict[Node, Module]) -> str:
    """'relu' or 'pool' if that is what reads a node, else what to tell of it."""
    if is_relu_call(user) and user.args[:1] == (node,):
        return "relu"
    if user.op == "output":
        return "forward returns its result"
    if user not in calls:
        return f"{getattr(user.target, '__name__', user.target)}() reads its result"
    layer = calls[user]
    if user.args == (node,) and not user.kwargs and (role := fnn.role(layer, ROLES)) in ("relu", "pool"):
        assert role is not None
        return role
    hooks = ", which has hooks," if fnn.is_observed(layer) else ""
    indices = ", which returns indices," if getattr(layer, "return_indices", False) else ""
    kind = fnn.kind(layer)
    name = {"conv": "Conv2d", "relu": "ReLU", "pool": "MaxPool2d"}.get(ROLES.get(kind, ""), kind.__name__)
    return f"{user.target} ({name}){hooks}{indices} reads its result"


def runs_in_sequential(root: Module, nodes: list[Node]) -> bool:
    """Whether all these layers are called in the loop of one Sequential, or of those within it."""
    if any(node.op != "call_module" for node in nodes):
        return False
    stacks = [[root, *stack_of(root, node)[:-1]] for node in nodes]
    common = sum(len(set(modules)) == 1 for modules in zip(*stacks, strict=False))
    return all(type(module) in SEQUENTIALS for stack in stacks for module in stack[common - 1 :])


def is_relu_call(node: Node) -> bool:
    if node.op == "call_function":
        return node.target in (F.relu, F.relu_, torch.relu, torch.relu_)
    return node.op == "call_method" and node.target in ("relu", "relu_")


def find_chains(model: Module) -> Chains:
    """The chains in the code of a model, but those that a Sequential can run by itself. The model is left as it is."""
    if torch_module._has_any_global_hook():
        return Chains(untraced={model: "a hook of all modules is registered"})
    # A copy is traced, for code may change what it finds; but parameters, which torch.fx never hands out, are shared,
    # as are tensors with a history, which cannot be copied.
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        tensors = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        memo.update({id(tensor): tensor for tensor in tensors if not tensor.is_leaf})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            twin = copy.deepcopy(model, memo)
        except Exception as error:  # whatever else the model has
            return Chains(untraced={model: f"it cannot be copied: {error}"})
        for module in twin.modules():
            if type(module) is fnn.Sequential:
                module.__class__ = torch.nn.Sequential  # type: ignore[assignment]
        found = Search(twin).result()
    original = dict(zip(twin.modules(), model.modules(), strict=True))
    return Chains(
        [Chain(original[c.conv], *(m and original[m] for m in (c.relu, c.pool))) for c in found.chains],
        {original[module]: reason for module, reason in found.reasons.items()},
        {original[module]: reason for module, reason in found.untraced.items()},
    )
