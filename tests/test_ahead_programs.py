"""Programs that could see that a layer has computed the next ones, too, get PyTorch's results."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ahead_cases import Forward, Net, Swapping, compare_program
from torch import Tensor
from torch.nn import functional as F

PROGRAMS: dict[str, Forward] = {}


def program(forward: Forward) -> Forward:
    PROGRAMS[forward.__name__] = forward
    return forward


# ---- other references to an intermediate result --------------------------------------------------------------------


@program
def two_variables(self: Net, x: Tensor) -> Any:
    y = z = self.conv(x)
    y = self.bn(y)
    return self.relu(y) + z


@program
def alias(self: Net, x: Tensor) -> Any:
    y = self.conv(x)
    z = y
    y = self.bn(y)
    return F.relu(y), z


@program
def other_names(self: Net, x: Tensor) -> Any:
    a = self.conv(x)
    b = self.bn(a)
    c = F.relu(b)
    return a, b, c


@program
def names_that_are_not_read(self: Net, x: Tensor) -> Any:
    a = self.conv(x)
    b = self.bn(a)
    c = F.relu(b)
    return c * c.mean()


@program
def a_name_that_an_error_leads_to(self: Net, x: Tensor) -> Any:
    a = x
    try:
        a = self.conv(x)
        b = self.relu(self.bn(a))
        return b + self.missing
    except AttributeError:
        return a


@program
def a_name_that_the_next_turn_reads(self: Net, x: Tensor) -> Any:
    a, total = x, x.sum()
    for _ in range(2):
        total = total + a.sum()
        a = self.conv(x)
        b = self.bn(a)
        total = total + F.relu(b).mean()
    return total


@program
def attribute(self: Net, x: Tensor) -> Any:
    self.kept = self.conv(x)
    return self.relu(self.bn(self.kept)), self.kept


@program
def in_a_list(self: Net, x: Tensor) -> Any:
    out = [self.conv(x)]
    out.append(self.bn(out[0]))
    return F.relu(out[1]), *out


@program
def closure(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    read = lambda: out  # noqa: E731
    kept = read()
    out = self.bn(out)
    return self.relu(out + kept), read()


@program
def walrus(self: Net, x: Tensor) -> Any:
    return F.relu(self.bn(y := self.conv(x))) + y


@program
def unpacked(self: Net, x: Tensor) -> Any:
    (y,) = (self.conv(x),)
    y, z = self.bn(y), y
    return F.relu(y), z


@program
def deleted(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    y = self.bn(out)
    del out
    return F.relu(y)


@program
def returned_twice(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    return self.relu(out), out


@program
def all_variables(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    normed = self.bn(out)
    return dict(locals())["out"], F.relu(normed)


@program
def keeps_locals(self: Net, x: Tensor) -> Any:
    names = locals()
    names.pop("x")
    x = self.conv(x)
    x = self.bn(x)
    return x, list(names) if sys.version_info < (3, 13) else None


@program
def read_by_a_callee(self: Net, x: Tensor) -> Any:
    def read() -> Tensor:
        return sys._getframe(1).f_locals["out"]

    out = self.conv(x)
    normed = self.bn(out)
    return F.relu(normed), read(), out


@program
def same_object_in_place(self: Net, x: Tensor) -> Any:
    y = self.bn(self.conv(x))
    z = self.relu(y)
    return z, z is y


@program
def plus_itself(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    out += out
    return self.relu(out)


@program
def residual_is_in_place(self: Net, x: Tensor) -> Any:
    identity = x.clone()
    identity += self.bn(self.conv(x))
    return self.relu(identity), identity


@program
def aliased_addition(self: Net, x: Tensor) -> Any:
    out = self.bn(self.conv(x))
    kept = out
    out += x
    return F.relu(out), kept


@program
def generator(self: Net, x: Tensor) -> Any:
    def results() -> Iterator[Tensor]:
        y = self.conv(x)
        yield y
        y = self.bn(y)
        yield y

    return list(results())


@program
def comprehension(self: Net, x: Tensor) -> Any:
    return [F.relu(self.bn(y)) for y in [self.conv(z) for z in (x, x + 1)]]


# ---- code between the steps ----------------------------------------------------------------------------------------


@program
def arguments_have_side_effects(self: Net, x: Tensor) -> Any:
    return self.relu(self.bn(self.conv(self.swap(x))))


@program
def an_argument_is_a_property(self: Net, x: Tensor) -> Any:
    source = Swapping(self, x)
    return self.relu(self.bn(self.conv(source.image)))


@program
def a_property_between(self: Net, x: Tensor) -> Any:
    source = Swapping(self, x)
    out = self.conv(x)
    image = source.image
    return image, self.bn(out)


@program
def a_finalizer_between(self: Net, x: Tensor) -> Any:
    class Guard:
        def __init__(self, net: Net) -> None:
            self.net = net

        def __del__(self) -> None:
            self.net.swap(x)

    out: Any = Guard(self)
    out = self.conv(x)
    out = self.bn(out)
    return self.relu(out)


@program
def a_weak_reference_between(self: Net, x: Tensor) -> Any:
    y = x + 1
    if not self.training:  # a Deferred does not keep its input alive for backward
        weakref.finalize(y, self.swap, x)
    y = self.conv(y)
    y = self.bn(y)
    return F.relu(y)


@program
def exception_with_the_result(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.conv(x)
        out = missing(self.bn(out))  # type: ignore[name-defined]
    except NameError as error:
        return out, str(error)


@program
def unbound_residual(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.conv(x)
        out = residual + self.bn(out)  # type: ignore[has-type]  # noqa: F821
        residual = x  # noqa: F841
    except UnboundLocalError:
        return out


@program
def unbound_variable_between(self: Net, x: Tensor) -> Any:
    out = x
    try:
        out = self.conv(x)
        y = residual  # type: ignore[has-type]  # noqa: F821
        out = self.bn(out)
        residual = y  # noqa: F841
    except UnboundLocalError:
        return out


@program
def finally_reads(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    try:
        return self.bn(out)
    finally:
        self.note(out)


@program
def with_between(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        out = self.bn(out)
    with contextlib.suppress(ValueError):
        return self.relu(out)


@program
def while_loop(self: Net, x: Tensor) -> Any:
    out = x
    while len(self.seen) < 3:
        y = self.conv(out)
        out = self.bn(y)
        self.note(y)
    return out


@program
def for_loop(self: Net, x: Tensor) -> Any:
    y = x
    for conv, bn in zip([self.conv, self.conv2], [self.bn, self.bn2], strict=True):
        x = conv(x)
        x = bn(x)
        x += y
    return F.relu(x)


@program
def expressions(self: Net, x: Tensor) -> Any:
    out = self.conv(x)
    out = self.bn(out) if len(self.seen) % 2 else self.bn2(out)
    assert out.shape == x.shape
    self.note(f"{out.shape} {len(out)} {bool(out.isfinite().all())}")
    return (self.relu if self.norm is None else self.leaky)(self.bn(out))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_pytorchs_results(name: str, training: bool) -> None:
    compare_program(PROGRAMS[name], training)
