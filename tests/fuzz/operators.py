"""Cases of one operator. Values, first and second gradients are compared with PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv
import fastconv.functional as FF
from fastconv._ops.arguments import fused_pool_arguments

from .compare import Mismatch, close, same, same_bits, same_values, tolerance
from .draw import ALGORITHMS, FLOATING, INTEGERS, LEVELS, THREADS, Draw, _pair

Tensors = dict[str, Tensor]


@dataclass
class Machine:
    """The settings of the process for a case."""

    level: str
    threads: int
    other_threads: tuple[int, ...]
    choices: dict[str, str] = field(default_factory=dict)
    winograd: int = -1
    band: int = 0  # elements of a band: a small number cuts small calls into bands, 0 stands for the default

    @classmethod
    def draw(cls, draw: Draw) -> Machine:
        level = draw.pick(LEVELS)
        threads = draw.pick(THREADS[:2])
        others = tuple(t for t in THREADS if t != threads and draw.chance(0.4)) if draw.chance(0.3) else ()
        choices = {}
        if draw.chance(0.6):
            for name in ALGORITHMS:
                chosen = draw.pick(("always", "never", ""))
                if chosen:
                    choices[name] = chosen
        return cls(level, threads, others, choices, draw.pick((-1, 0, 2, 3, 4, 4)), draw.pick((0, 0, 0, 1, 300, 3000)))

    @contextmanager
    def running(self) -> Iterator[None]:
        level, threads = fastconv._C.cpu_capability(), torch.get_num_threads()
        try:
            fastconv._C.set_cpu_capability(self.level)
            fastconv._C.set_algorithms(self.choices, self.winograd, self.band)
            torch.set_num_threads(self.threads)
            yield
        finally:
            fastconv._C.set_cpu_capability(level)
            fastconv._C.set_algorithms({})
            torch.set_num_threads(threads)

    def largest_tile(self, w: tuple[int, ...], arguments: dict[str, Any], pooled: bool) -> int:
        """The side of the largest tile that Winograd's forward may use. 0 if Winograd cannot be chosen."""
        plain = w[2:] == (3, 3) and arguments.get("groups", 1) == 1
        plain = plain and _pair(arguments.get("stride", 1)) == _pair(arguments.get("dilation", 1)) == (1, 1)
        if not plain or self.winograd == 0 or self.choices.get("winograd") == "never":
            return 0
        if self.choices.get("winograd") != "always" and min(w[:2]) < 16:
            return 0
        return 2 if pooled or self.level == "default" else 3 if self.winograd < 0 else self.winograd


def derivatives(
    function: Callable[..., Tensor], given: Tensors, wanted: list[str], g: Tensor | None, vectors: Tensors | None
) -> Tensors:
    """Return y, the gradients of `wanted` for grad_output g, and the second gradients for `vectors`."""
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in given.items()}
    y = function(**leaves)
    results = {"y": y.detach()}
    if not wanted or g is None:
        return results
    g = g.detach().requires_grad_(vectors is not None)
    inputs = [leaves[name] for name in wanted]
    first = torch.autograd.grad(y, inputs, g, create_graph=vectors is not None)
    results |= {f"grad of {name}": t.detach() for name, t in zip(wanted, first, strict=True)}
    if vectors is not None:
        named = {"g": g, **{name: leaves[name] for name in wanted}}
        second = torch.autograd.grad(
            first, list(named.values()), [vectors[name] for name in wanted], allow_unused=True, materialize_grads=True
        )
        results |= {f"second grad of {name}": t for name, t in zip(named, second, strict=True)}
    return results


def is_reduced(t: Tensor) -> bool:
    return t.dtype in (torch.bfloat16, torch.float16)


def absolute(t: Tensor) -> Tensor:
    """The absolute values, which bound the rounding errors. NaN and infinity count as 0."""
    return t.nan_to_num(0, 0, 0).abs()


def double(tensors: Tensors) -> Tensors:
    return {name: t.double().contiguous() for name, t in tensors.items()}


def pads(x: Tensor, w: Tensor, arguments: dict[str, Any]) -> list[int]:
    """The padding in the order of F.pad: left, right, top, bottom."""
    padding = arguments.get("padding", 0)
    if padding == "valid":
        return [0] * 4
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(_pair(arguments.get("dilation", 1)), w.shape[2:], strict=True)]
        return [totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2]
    h, v = _pair(padding)
    return [v, v, h, h]


@dataclass
class Convolution:
    """A case of conv2d, conv2d_relu or conv2d_relu_max_pool2d."""

    name: str
    given: Tensors
    arguments: dict[str, Any]
    pool: dict[str, Any] | None
    g: Tensor | None
    wanted: list[str]
    vectors: Tensors | None
    values: str
    machine: Machine

    def ours(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        function: Callable[..., Tensor] = getattr(FF, self.name)
        return function(x, w, b, **self.arguments, **({f"pool_{k}": v for k, v in (self.pool or {}).items()}))

    def theirs(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = F.conv2d(x, w, b, **self.arguments)
        if self.name != "conv2d":
            y = F.relu(y)
        return F.max_pool2d(y, **self.pool) if self.pool else y

    def theirs_by_selection(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Compute `theirs` by selecting elements of the convolution.

        F.relu and F.max_pool2d have second derivatives of 0, and 0 times infinity is NaN.
        """
        y = self.unpadded(x, w, b)
        if self.name != "conv2d":
            y = torch.where(y.detach() <= 0, 0.0, y)
        if self.pool is None:
            return y
        maxima, indices = F.max_pool2d(y.detach(), **self.pool, return_indices=True)
        empty = (
            F.max_pool2d(torch.zeros_like(y), **self.pool) != 0
        )  # windows of padding only, whose indices are outside the image
        chosen = y.flatten(-2).gather(-1, torch.where(empty, 0, indices).flatten(-2)).view(indices.shape)
        return torch.where(empty, maxima, chosen)

    def unpadded(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Compute conv2d of an input that is padded first."""
        arguments = {name: value for name, value in self.arguments.items() if name != "padding"}
        if x.dim() == 3:
            return self.unpadded(x.unsqueeze(0), w, b).squeeze(0)
        return F.conv2d(F.pad(x, pads(x, w, self.arguments)), w, b, **arguments)

    def argmax(self) -> tuple[Tensor, Tensor]:
        """The position of each maximum of the fused operator in its image, and whether it passed the ReLU."""
        a = self.arguments
        operands = FF.convolution_arguments(
            self.given["x"],
            self.given["w"],
            self.given.get("b"),
            a.get("stride", 1),
            a.get("padding", 0),
            a.get("dilation", 1),
            a.get("groups", 1),
        )
        assert operands is not None
        x, *rest = operands
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        pool: Any = ((1, 1), (1, 1), (0, 0), (1, 1), False)
        if self.pool is not None:
            p = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, **self.pool}
            pool = fused_pool_arguments(p["kernel_size"], p["stride"], p["padding"], p["dilation"], p["ceil_mode"])
        kernel, stride, padding, dilation, _ = pool
        fused: Any = fastconv._ops.conv2d_relu_max_pool2d.forward
        byte = fused(batch, *rest, pool if self.pool else None)[1]
        position = byte.long()
        live = position != 255
        position = torch.where(live, position, 0)
        rows = torch.arange(byte.shape[2]).view(-1, 1) * stride[0] - padding[0] + position // kernel[1] * dilation[0]
        columns = torch.arange(byte.shape[3]) * stride[1] - padding[1] + position % kernel[1] * dilation[1]
        flat = torch.where(live, rows * self.convolved()[-1] + columns, 0)
        return (flat, live) if x.dim() == 4 else (flat[0], live[0])

    def convolved(self) -> torch.Size:
        """The size of the convolution's result."""
        return F.conv2d(self.given["x"].to("meta"), self.given["w"].to("meta"), None, **self.arguments).shape

    # ---- the check ----

    def check(self) -> None:
        try:
            theirs = self.theirs(**self.for_pytorch())
        except RuntimeError as expected:
            refuses(lambda: self.ours(**self.given), expected)
            return
        with self.machine.running():
            found = self.derivatives_of(self.ours)
            for threads in self.machine.other_threads:
                torch.set_num_threads(threads)
                for name, t in self.derivatives_of(self.ours).items():
                    same_bits(f"{name} by {threads} threads", t, found[name])
            torch.set_num_threads(self.machine.threads)
            with torch.no_grad():
                for again in range(2):  # the weight was packed in the call above. Cache it, then find it in the cache
                    same_bits(f"y again ({again})", self.ours(**self.given), found["y"])
            gated = self.name != "conv2d" and found["y"].numel() > 0 and 0 not in self.given["w"].shape
            gate = self.argmax() if gated else None
        same("y dtype", found["y"].dtype, self.given["x"].dtype)
        same("y shape", found["y"].shape, theirs.shape)
        unbatched = self.given["x"].dim() == 3
        one_pixel = (1, 1) in (self.given["x"].shape[-2:], self.convolved()[-2:])
        if not (unbatched and self.pool) and not one_pixel:  # UNBATCHED, ONE PIXEL
            same("y strides", strides(found["y"]), strides(theirs))
        if found["y"].numel() == 0 and self.given["x"].shape[-3] == 0:
            return
        if self.exact():
            exact = self.reference(self.theirs_by_selection)
            for name, t in found.items():
                same_values(name, t, exact[name], self.over_padding().get(name))
        else:
            self.check_close(found, gate)

    def for_pytorch(self) -> Tensors:
        """Return the operands in a type that PyTorch computes fast and without a crash. Shapes and errors stay."""
        if self.given["w"].shape[-1] == 1:  # CRASH
            return {name: t.double() for name, t in self.given.items()}
        return {name: t.float() if is_reduced(t) else t for name, t in self.given.items()}

    def derivatives_of(self, function: Callable[..., Tensor]) -> Tensors:
        return derivatives(function, self.given, self.wanted, self.g, self.vectors)

    def tile(self) -> int:
        # Pools of one pixel do not limit the tiles. The second gradient of a pooled convolution has no pool.
        pooled = self.pool is not None and _pair(self.pool["kernel_size"]) != (1, 1) and self.vectors is None
        return self.machine.largest_tile(tuple(self.given["w"].shape), self.arguments, pooled)

    def weight_tile(self) -> int:
        """Return the largest tile of the gradient of w, which a pool does not limit."""
        return self.machine.largest_tile(tuple(self.given["w"].shape), self.arguments, False)

    def exact(self) -> bool:
        """Integers give exact results, except with Winograd's tiles above 2 x 2, whose points are not integers."""
        rounded_twice = is_reduced(self.given["x"]) and self.vectors is not None
        return self.values in EXACT and self.weight_tile() <= 2 and not rounded_twice

    def reference(self, function: Callable[..., Tensor], change: Callable[[Tensor], Tensor] = lambda t: t) -> Tensors:
        """Compute `function` and its derivatives in float64, after `change` of all tensors."""
        given = {name: change(t) for name, t in double(self.given).items()}
        g = None if self.g is None else change(self.g.double())
        vectors = None if self.vectors is None else {n: change(t) for n, t in double(self.vectors).items()}
        return derivatives(function, given, self.wanted, g, vectors)

    def over_padding(self) -> Tensors:
        """PADDING: mark the results of conv2d that a product of padding with infinity or NaN may reach."""
        if self.values not in SPECIAL or self.name != "conv2d" or not any(self.pads()):
            return {}
        zeros = torch.zeros_like(self.given["x"], dtype=torch.float64)
        batch = zeros if zeros.dim() == 4 else zeros.unsqueeze(0)
        padding = F.pad(batch, self.pads(), value=1.0)
        arguments = {name: value for name, value in self.arguments.items() if name != "padding"}
        infinite = {name: (~t.isfinite()).double() for name, t in double(self.given).items()}
        g = None if self.g is None else (~self.g.isfinite()).double()

        def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            y = F.conv2d(x, w, b, **arguments)
            return y if zeros.dim() == 4 else y.squeeze(0)

        # Replace x by 1 in the padding and 0 elsewhere, and w, b and g by 1 where they are not finite and 0 elsewhere.
        # A result is then non-zero if one of its terms is a product of padding with infinity or NaN.
        vectors = None if self.vectors is None else {n: torch.ones_like(t, dtype=torch.float64) for n, t in
                                                      self.vectors.items()}  # fmt: skip
        if vectors is not None and "x" in vectors:
            vectors["x"] = padding
        results = derivatives(function, {**infinite, "x": padding}, self.wanted, g, vectors)
        return {
            n: t != 0 for n, t in results.items() if n in ("y", "grad of w", "second grad of g", "second grad of w")
        }

    def pads(self) -> list[int]:
        return pads(self.given["x"], self.given["w"], self.arguments)

    def check_close(self, found: Tensors, gate: tuple[Tensor, Tensor] | None) -> None:
        function: Callable[..., Tensor] = self.unpadded
        if gate is not None:
            flat, live = gate
            conv = self.unpadded(**double(self.given))
            dead = 0 * conv.nan_to_num(0, 0, 0)
            dead = F.max_pool2d(dead, **self.pool) if self.pool else dead  # -inf for windows of padding only

            def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
                y = self.unpadded(x, w, b).flatten(-2).gather(-1, flat.flatten(-2)).view(flat.shape)
                return torch.where(live, y, dead)

        elif self.name != "conv2d":
            return  # no result to compare
        expected = self.reference(function)
        sizes = self.reference(function, absolute)
        tile = self.tile()
        spread = self.reference(function, self.largest_near) if tile or self.weight_tile() else sizes
        terms = self.terms()
        unpooled = self.pool is not None and self.vectors is not None  # sums of overlapping windows are rounded again
        for name, t in found.items():
            size = sizes[name]
            if tile and name in ("y", "grad of x", "second grad of g", "second grad of x"):
                size = spread[name]
            elif name in ("grad of w", "second grad of w") and self.weight_tile():  # Errors of a tap reach all taps.
                size = torch.maximum(spread[name], size.amax((-1, -2), keepdim=True))
            summed = name.startswith("second") or unpooled
            close(name, t, expected[name], size, terms[name], self.over_padding().get(name), summed)
        if gate is not None:
            self.check_gate(expected["y"], terms["y"])

    def check_gate(self, chosen: Tensor, terms: int) -> None:
        """Require that each element the operator chose is a maximum, except for rounding."""
        maxima = self.theirs_by_selection(**double(self.given))
        change = self.largest_near if self.tile() else absolute
        size = self.unpadded(**{name: change(t) for name, t in double(self.given).items()})
        dtype = self.given["x"].dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        allowed = tolerance(wide, maxima, size, terms)
        if self.pool:
            allowed = F.max_pool2d(2 * allowed, **self.pool)
        close_enough = (maxima - chosen).abs() <= allowed
        good = torch.where(maxima.isfinite(), close_enough, (maxima == chosen) | (maxima.isnan() & chosen.isnan()))
        if self.pool:
            size = F.max_pool2d(size, **self.pool)
        good |= ~(size <= torch.finfo(wide).max / 4)  # OVERFLOW
        if not good.all():
            at = tuple(int(i) for i in (~good).nonzero()[0])
            raise Mismatch(f"argmax{list(at)}: chose {chosen[at].item()!r}, the maximum is {maxima[at].item()!r}")

    def largest_near(self, t: Tensor) -> Tensor:
        """WINOGRAD: the largest absolute value in all tiles that may contain each element."""
        t = absolute(t)
        if t.dim() < 3 or t.numel() == 0:
            return t
        if t.shape == self.given["w"].shape:
            return t.amax((-1, -2), keepdim=True).expand_as(t)
        batch = t if t.dim() == 4 else t.unsqueeze(0)
        return F.max_pool2d(batch, 11, 1, 5).view(t.shape)

    def terms(self) -> dict[str, int]:
        K, C, R, S = self.given["w"].shape
        groups = self.arguments.get("groups", 1)
        x = self.given["x"]
        pixels = x.numel() // max(C * groups, 1)
        forward, data = C * R * S + 1, K // groups * R * S
        return {
            "y": forward,
            "grad of x": data,
            "grad of w": pixels + 64,
            "grad of b": pixels + 64,
            "second grad of g": 2 * forward,
            "second grad of x": data,
            "second grad of w": pixels + 64,
            "second grad of b": 1,
        }


def strides(t: Tensor) -> tuple[int, ...]:
    """The strides of the dimensions with more than one element."""
    return tuple(stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1) if t.numel() else ()


def refuses(call: Callable[[], Any], expected: Exception) -> None:
    """Require that `call` raises PyTorch's error."""
    try:
        call()
    except Exception as found:
        same("error", type(found).__name__, type(expected).__name__)
        same("error", first_line(found), first_line(expected))
        return
    raise Mismatch(f"no error, expected {type(expected).__name__}: {first_line(expected)}")


def first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


# ---- cases ----------------------------------------------------------------------------------------------------------

SPECIALS = (float("nan"), float("inf"), -float("inf"), -0.0)
SPECIAL = ("special", "special images")
EXACT = ("integers", *SPECIAL)


def valued(draw: Draw, values: str, size: tuple[int, ...], role: str) -> Tensor:
    """Values of a tensor, in float64."""
    if values in EXACT:
        t = draw.integers(size, {"x": 3, "w": 2, "b": 6}.get(role, 2))
        if role in ("x", "g") and draw.chance(0.4):
            t = draw.sparse(t, draw.pick((0.3, 0.7, 0.97)))
        if values == "special" and role != "v" and draw.chance(0.5 if role == "x" else 0.25):
            t = draw.sprinkled(t, SPECIALS, draw.pick((0.002, 0.03, 0.3)))
        if values == "special images" and role in ("x", "g"):
            for image in t:
                if draw.chance(0.7) and image.numel():
                    image.view(-1)[draw.upto(image.numel() - 1)] = draw.pick(SPECIALS[:3])
        return t
    t = draw.normal(size)
    if values == "sparse" and role in ("x", "g"):
        return draw.sparse(t.abs() if role == "x" else t)
    if values == "denormal" and role != "w":
        return t * 1e-39
    if values == "huge" and role in ("x", "w"):
        return draw.sprinkled(t, (1e37, -1e37), 0.01)
    if values == "ties":
        return draw.sparse(torch.ones(size, dtype=torch.float64) * 0.3, 0.1) if role == "x" else t
    return t


def convolution(draw: Draw) -> Convolution:
    name = draw.pick(("conv2d", "conv2d", "conv2d_relu", "conv2d_relu_max_pool2d"))
    shape = draw.convolution()
    values = draw.pick(("integers", "integers", "normal", "sparse", "special", "ties", "denormal", "huge"))
    dtype = draw.pick(FLOATING)
    if values in ("denormal", "huge") and dtype in (torch.float16, torch.bfloat16):
        values = "normal"
    machine = Machine.draw(draw)
    if draw.chance(0.03):  # Winograd recomputes each image whose result is not finite
        shape, values = draw.winograd(), "special images"
        machine.choices = {"winograd": "always", "small_output": "never", "sparse_gradient": "never"}
        machine.winograd, machine.band = draw.pick((-1, 2, 3, 4)), 0
    x_size, w_size, arguments = shape["x"], shape["w"], shape["arguments"]
    if draw.chance(0.08) and x_size[0] > 0:
        x_size = x_size[1:]
    given, layouts = {}, {}
    roles = {"x": x_size, "w": w_size, **({"b": w_size[:1]} if draw.chance(0.7) else {})}
    for role, size in roles.items():
        given[role], layouts[role] = draw.layout(valued(draw, values, size, role).to(dtype))
    pool = draw.pool() if name.endswith("pool2d") else None
    case = Convolution(name, given, arguments, pool, None, [], None, values, machine)
    if values in SPECIAL and any(case.pads()) and (name != "conv2d" or draw.chance(0.5)):
        given["w"] = given["w"].nan_to_num(1, 1, 1)  # PADDING
    try:
        y = case.theirs(**{n: t.to("meta") for n, t in given.items()})
    except RuntimeError:
        return case
    if not draw.chance(0.8) or 0 in x_size[-3:]:
        return case
    case.wanted = [role for role in given if draw.chance(0.8)] or ["x"]
    case.g, layouts["g"] = draw.layout(valued(draw, values, tuple(y.shape), "g").to(dtype))
    if values in SPECIAL and name != "conv2d" and any(case.pads()):
        case.g = case.g.nan_to_num(1, 1, 1)  # PADDING
    if draw.chance(0.35):
        case.vectors = {role: valued(draw, values, tuple(given[role].shape), "v").to(dtype) for role in case.wanted}
    return case


@dataclass
class Pool:
    """A case of max_pool2d."""

    x: Tensor
    arguments: dict[str, Any]
    g: Tensor | None
    v: Tensor | None
    machine: Machine

    def run(self, function: Callable[..., Any], wide: bool = False) -> Tensors:
        x, g, v = (None if t is None else t.double() if wide else t for t in (self.x, self.g, self.v))
        assert x is not None
        x = x.detach().requires_grad_(g is not None)
        y, indices = function(x, **self.arguments, return_indices=True)
        results = {"y": y.detach(), "indices": indices}
        if g is not None:
            g = g.detach().requires_grad_()
            (dx,) = torch.autograd.grad(y, x, g, create_graph=v is not None)
            results["grad of x"] = dx.detach()
            if v is not None:
                (results["second grad of g"],) = torch.autograd.grad(dx, g, v)
        return results

    def check(self) -> None:
        try:
            theirs = self.run(F.max_pool2d)
        except (RuntimeError, TypeError) as expected:
            if "integer_t" in str(expected):  # SMALL INTEGERS
                return
            refuses(lambda: self.run(FF.max_pool2d), expected)
            return
        with self.machine.running():
            found = self.run(FF.max_pool2d)
            for threads in self.machine.other_threads:
                torch.set_num_threads(threads)
                for name, t in self.run(FF.max_pool2d).items():
                    same_bits(f"{name} by {threads} threads", t, found[name])
            same_bits("y alone", FF.max_pool2d(self.x, **self.arguments), found["y"])
        for name in ("y", "indices", "second grad of g"):
            if name in theirs:
                same_bits(name, found[name], theirs[name])
        for name in ("y", "indices"):
            same(f"{name} strides", strides(found[name]), strides(theirs[name]))
        if self.g is not None:
            exact = self.run(F.max_pool2d, wide=True)["grad of x"]
            size = Pool(self.x, self.arguments, self.g.nan_to_num(0, 0, 0).abs(), None, self.machine)
            close("grad of x", found["grad of x"], exact, size.run(F.max_pool2d, wide=True)["grad of x"], 25)


def pool(draw: Draw) -> Pool:
    n, c = draw.pick((0, 1, 1, 2, 3, 17)), draw.pick((0, *CHANNELS_OF_POOLS))
    h, w = (draw.pick((*SIDES_OF_POOLS, 0) if draw.chance(0.05) else SIDES_OF_POOLS) for _ in range(2))
    integral = draw.chance(0.2)
    dtype = draw.pick(INTEGERS) if integral else draw.pick(FLOATING)
    values = draw.pick(("integers", "normal", "special", "denormal", "huge"))
    size = (n, c, h, w) if draw.chance(0.9) else (c, h, w)
    x = valued(draw, values if not integral else "integers", size, "x")
    if integral and draw.chance(0.3):
        x = torch.from_numpy(draw.rng.integers(torch.iinfo(dtype).min, torch.iinfo(dtype).max, size, endpoint=True,
                                               dtype=str(dtype).removeprefix("torch.")))  # fmt: skip
    if dtype == torch.uint8:
        x = x.abs()
    x, _ = draw.layout(x.to(dtype))
    case = Pool(x, draw.pool(), None, None, Machine.draw(draw))
    try:
        y, indices = F.max_pool2d(x, **case.arguments, return_indices=True)
    except (RuntimeError, TypeError):
        return case
    # For windows of padding only, PyTorch's backward writes outside the image.
    inside = indices.numel() == 0 or int(indices.max()) < h * w
    if not integral and inside and draw.chance(0.7):
        case.g, _ = draw.layout(valued(draw, values, tuple(y.shape), "g").to(dtype))
        if draw.chance(0.3):
            case.v = valued(draw, values, tuple(x.shape), "v").to(dtype)
    return case


CHANNELS_OF_POOLS = (1, 2, 3, 5, 15, 16, 17, 32, 33, 64)
SIDES_OF_POOLS = (1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 26, 31, 40)


@dataclass
class ReLU:
    """A case of relu."""

    x: Tensor
    g: Tensor | None
    v: Tensor | None
    in_place: bool
    machine: Machine

    def run(self, function: Callable[..., Any]) -> Tensors:
        x = self.x.detach().requires_grad_(self.g is not None)
        # In place, the strides matter. A clone may have other strides, since it fills gaps.
        if self.in_place and self.g is None:
            target = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
            if self.writable():
                target.copy_(x)
            y = function(target, inplace=True)
            same("the result in place is the input", y is target, True)
        elif self.in_place:
            y = function(x.clone(), inplace=True)
        else:
            y = function(x)
        results = {"y": y.detach()}
        if self.g is not None:
            g = self.g.detach().requires_grad_()
            (dx,) = torch.autograd.grad(y, x, g, create_graph=self.v is not None)
            results["grad of x"] = dx.detach()
            if self.v is not None:
                (results["second grad of g"],) = torch.autograd.grad(dx, g, self.v)
        return results

    def writable(self) -> bool:
        return all(stride > 0 or size < 2 for size, stride in zip(self.x.shape, self.x.stride(), strict=True))

    def check(self) -> None:
        try:
            theirs = self.run(F.relu)
        except RuntimeError as expected:
            refuses(lambda: self.run(FF.relu), expected)
            return
        with self.machine.running():
            found = self.run(FF.relu)
            for threads in self.machine.other_threads:
                torch.set_num_threads(threads)
                for name, t in self.run(FF.relu).items():
                    same_bits(f"{name} by {threads} threads", t, found[name])
        for name, t in found.items():
            same_bits(name, t, theirs[name]) if name == "y" else same_values(name, t, theirs[name].double())
        same("y strides", strides(found["y"]), strides(theirs["y"]))


def relu(draw: Draw) -> ReLU:
    dimensions = draw.upto(5)
    size = tuple(draw.pick((1, 2, 3, 5, 8, 13, 33) if dimensions < 5 else (1, 2, 3, 5)) for _ in range(dimensions))
    if draw.chance(0.03) and size:
        size = (*size[:-1], 0)
    integral = draw.chance(0.2)
    dtype = draw.pick((*INTEGERS, torch.bool, torch.complex64)) if integral else draw.pick(FLOATING)
    values = draw.pick(("integers", "normal", "special", "denormal", "huge"))
    x = valued(draw, "integers" if integral else values, size, "x")
    x, _ = draw.layout((x.abs() if dtype == torch.uint8 else x).to(dtype))
    g = v = None
    if not integral and draw.chance(0.6):
        g, _ = draw.layout(valued(draw, values, size, "g").to(dtype))
        v = valued(draw, values, size, "v").to(dtype) if draw.chance(0.4) else None
    return ReLU(x, g, v, draw.chance(0.4), Machine.draw(draw))
