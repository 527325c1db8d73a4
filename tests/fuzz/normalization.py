"""Cases of batch_norm and batch_norm_relu. Values and gradients are compared with PyTorch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FF

from .compare import close, same, same_bits
from .draw import FLOATING, Draw
from .operators import SPECIALS, Machine, Tensors, absolute, strides

SIDES = (1, 1, 2, 3, 4, 7, 8, 9, 16, 31)
NAMES = ("running_mean", "running_var", "weight", "bias")


@dataclass
class BatchNorm:
    """A case. Without `relu`, there is no residual."""

    x: Tensor
    vectors: Tensors
    residual: Tensor | None
    g: Tensor
    wanted: list[str]
    relu: bool
    training: bool
    momentum: float
    eps: float
    machine: Machine

    def run(self, wide: Tensor | None = None) -> Tensors:
        """Return our results. With `wide`, PyTorch's in float64 for this gradient of the value before ReLU."""
        change = (lambda t: t.clone()) if wide is None else (lambda t: t.double().contiguous())
        given = {"x": self.x, **{n: t for n, t in self.vectors.items() if n in ("weight", "bias")}}
        given |= {} if self.residual is None else {"residual": self.residual}
        leaves = {
            name: (t if wide is None else change(t)).detach().requires_grad_(name in self.wanted)
            for name, t in given.items()
        }
        running = [change(self.vectors[name]) if name in self.vectors else None for name in NAMES[:2]]
        arguments = (
            leaves["x"],
            *running,
            leaves.get("weight"),
            leaves.get("bias"),
            self.training,
            self.momentum,
            self.eps,
        )
        residual = leaves.get("residual")
        if wide is None:
            y = FF.batch_norm_relu(*arguments, residual=residual) if self.relu else FF.batch_norm(*arguments)
        else:
            y = F.batch_norm(*arguments)
            y = y if residual is None else y + residual
        results = {"y": y.detach()}
        if self.wanted:
            found = torch.autograd.grad(y, [leaves[n] for n in self.wanted], self.g if wide is None else wide)
            results |= {f"grad of {n}": t for n, t in zip(self.wanted, found, strict=True)}
        return results | {name: t for name, t in zip(NAMES, running, strict=False) if t is not None}

    def sizes(self, g: Tensor) -> Tensors:
        """The sum of the absolute values of each result's terms."""
        x, dims = self.x.double(), [d for d in range(self.x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        given = {name: t.double().view(shape) for name, t in self.vectors.items()}
        if self.training:
            mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        else:
            mean, var = given["running_mean"], given["running_var"]
        inverse = (var + self.eps).rsqrt()
        level = absolute(x).mean(dims, keepdim=True) if self.training else absolute(mean)
        normal = (absolute(x) + level) * absolute(inverse)
        w, b, g = (
            absolute(given.get("weight", torch.ones(()))),
            absolute(given.get("bias", torch.zeros(()))),
            absolute(g),
        )
        sizes = {"y": normal * w + b}
        if self.residual is not None:
            sizes["y"] = sizes["y"] + absolute(self.residual.double())
        mean_g, mean_gx = (t.mean(dims, keepdim=True) if self.training else 0 for t in (g, g * normal))
        sizes |= {"grad of x": (g + mean_g + normal * mean_gx) * absolute(inverse) * w, "grad of residual": g}
        sizes |= {"grad of weight": (g * normal).sum(dims), "grad of bias": g.sum(dims)}
        old = {name: absolute(given[name]).flatten() for name in NAMES[:2] if name in given}
        new = {
            "running_mean": level.flatten(),
            "running_var": (2 * absolute(var) + level * absolute(var).sqrt()).flatten(),
        }
        return sizes | {name: t + abs(self.momentum) * (new[name] + t) for name, t in old.items()}

    def check(self) -> None:
        with self.machine.running():
            found = self.run()
            for threads in self.machine.other_threads:
                torch.set_num_threads(threads)
                for name, t in self.run().items():
                    same_bits(f"{name} by {threads} threads", t, found[name])
        theirs = (
            F.batch_norm(self.x, *(self.vectors.get(n) for n in NAMES[:2]), training=self.training)
            if not self.training
            else F.batch_norm(self.x, None, None, training=True)
        )
        same("y dtype", found["y"].dtype, theirs.dtype)
        if self.x[0, 0].numel() > 1:
            same("y strides", strides(found["y"]), strides(theirs))
        g = self.g.double()
        if self.relu:
            g = torch.where(found["y"] <= 0, 0.0, g)
        exact, sizes = self.run(g), self.sizes(g)
        before = exact["y"]
        if self.relu:
            exact["y"] = F.relu(before)
        # In float64, the reference sums one value after the other.
        terms = 144 + (self.x.numel() if self.x.dtype == torch.float64 else 0)
        for name, t in found.items():
            close(name, t, exact[name], sizes[name].expand_as(t), terms)


def batch_norm(draw: Draw) -> BatchNorm:
    dimensions = draw.pick((2, 3, 4, 4, 4, 4, 5))
    channels = draw.pick((1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 65, 130))
    sides = [draw.pick(SIDES if dimensions < 5 else SIDES[:6]) for _ in range(dimensions - 2)]
    size = (draw.pick((1, 2, 3, 5, 9, 33)), channels, *sides)
    training = draw.chance(0.7) and torch.Size(size).numel() > channels
    dtype = draw.pick(FLOATING)
    reduced = dtype in (torch.bfloat16, torch.float16)
    vector_type = torch.float32 if reduced and draw.chance(0.6) else dtype
    values = draw.pick(("normal", "normal", "integers", "special", "huge", "large mean", "tiny"))
    x = draw.integers(size, 3) if values == "integers" else draw.normal(size)
    if values == "special":
        x = draw.sprinkled(x, SPECIALS, draw.pick((0.001, 0.03)))
    if not reduced:
        x = x * {"huge": 1e18, "tiny": 1e-18}.get(values, 1.0) + (1e4 if values == "large mean" else 0)
    x, _ = draw.layout(x.to(dtype))
    vectors: dict[str, Any] = {}
    if not training or draw.chance(0.6):
        vectors = {"running_mean": draw.normal((channels,)), "running_var": draw.normal((channels,)).abs() + 0.1}
    if draw.chance(0.7):
        vectors["weight"] = draw.sparse(draw.normal((channels,)), 0.1)
    if draw.chance(0.7):
        vectors["bias"] = draw.normal((channels,))
    vectors = {name: t.to(vector_type) for name, t in vectors.items()}
    relu = draw.chance(0.6)
    residual = draw.layout(draw.normal(size).to(dtype))[0] if relu and draw.chance(0.5) else None
    g = draw.layout((draw.sparse(draw.normal(size), 0.5) if draw.chance(0.3) else draw.normal(size)).to(dtype))[0]
    names = ["x", *(n for n in ("weight", "bias") if n in vectors), *([] if residual is None else ["residual"])]
    wanted = [name for name in names if draw.chance(0.8)] if draw.chance(0.85) else []
    momentum, eps = draw.pick((0.1, 0.1, 0.0, 1.0, 0.5)), draw.pick((1e-5, 1e-5, 1e-3, 1.0))
    return BatchNorm(x, vectors, residual, g, wanted, relu, training, momentum, eps, Machine.draw(draw))
