"""Call every operator and every function of ``fastconv._C`` with random, mostly invalid arguments.

    python tests/attack.py                        10,000 calls of each
    python tests/attack.py --count 300 --seed 7   300 calls of each, with other arguments
    python tests/attack.py --only relu_backward:1234 --trace   repeat one call

Each call must raise an error with a clear message, or return a result of the size that its fake kernel declares. The
first 50 calls that do neither are printed. To find a call that crashes, print each call before it starts: ``--trace``.
Under AddressSanitizer and UBSan (``make asan``), no call may read or write outside its tensors.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from fastconv import _C

COUNT = 10_000
HUGE = (2**31 - 1, 2**31, 2**33, 2**40, 2**40 + 1, 2**61, 2**62 + 1, 2**63 - 1)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
OTHER = (torch.bool, torch.complex64)
Arguments = dict[str, Any]


def names() -> list[str]:
    """The operators, from the dispatcher's table."""
    found = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("fastconv::") for name in found if name.startswith("fastconv::"))


# ---- tensors -----------------------------------------------------------------------------------------------------


def tensor(rng: random.Random, sizes: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Random values, or sometimes random bits, in a random memory layout."""
    size = list(sizes)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    if max(size, default=0) > 2**20:
        return torch.ones((), dtype=dtype).expand(size)
    if dtype is torch.bool:
        values = torch.randint(0, 2, size, generator=generator).bool()
    elif rng.random() < 0.2 and not dtype.is_complex:  # includes NaN, infinities, denormals, and any index
        bits = torch.randint(0, 256, (*size, dtype.itemsize), generator=generator, dtype=torch.uint8)
        values = bits.view(dtype).reshape(size)
    elif dtype.is_floating_point or dtype.is_complex:
        values = torch.randn(size, generator=generator, dtype=torch.float32).to(dtype)
    else:
        values = torch.randint(0, 16, size, generator=generator).to(dtype)
    return laid_out(rng, values)


def laid_out(rng: random.Random, values: Tensor) -> Tensor:
    others = ["shifted", "gaps", "transposed", "expanded", "overlap"]
    layout = rng.choice(["contiguous"] * 4 + ["channels_last"] * 3 + others)
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "shifted":  # the data is not aligned to vectors
        memory = torch.empty(values.numel() + 1, dtype=values.dtype)
        return memory[1:].view(values.shape).copy_(values)
    if layout == "gaps" and values.dim() > 0:
        wide = torch.empty((*values.shape[:-1], 2 * values.shape[-1] + 1), dtype=values.dtype)
        return wide[..., 1::2].copy_(values)
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded" and values.dim() > 0 and values.shape[0] > 0:
        return values[:1].expand(values.shape)
    if layout == "overlap" and values.dim() > 0:
        memory = torch.randn(sum(values.shape) + 1).to(values.dtype)
        return memory.as_strided(values.shape, [1] * values.dim())
    return values


# ---- arguments that fit ------------------------------------------------------------------------------------------


def convolution(rng: random.Random) -> tuple[Arguments, list[int], list[int], list[int]]:
    """stride, padding, dilation and groups, and the sizes of input, weight and output."""
    pair = lambda low, high: [rng.randint(low, high), rng.randint(low, high)]  # noqa: E731
    groups = rng.choice([1, 1, 1, 2, 3])
    channels = rng.choice([1, 1, 2, 3, 16, 20])
    outputs = rng.choice([1, 2, 4, 16, 17])
    if groups > 1 and rng.random() < 0.5:
        channels = outputs = 1
    stride, padding, dilation, kernel = pair(1, 3), pair(0, 3), pair(1, 2), pair(1, 4)
    if rng.random() < 0.4:  # the shapes that Winograd's kernels compute
        stride, dilation, kernel = [1, 1], [1, 1], [3, 3]
    image = pair(1, 12)
    batch = rng.choice([0, 1, 1, 2, 3])
    size = [(image[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight = [outputs * groups, channels, *kernel]
    return arguments, [batch, channels * groups, *image], weight, [batch, outputs * groups, *[max(0, s) for s in size]]


def pool(rng: random.Random, size: list[int]) -> tuple[Arguments, list[int]]:
    """kernel_size, stride, padding and dilation, and the size of the output."""
    kernel = [rng.randint(1, 3), rng.randint(1, 3)]
    stride = kernel if rng.random() < 0.5 else [rng.randint(1, 3), rng.randint(1, 3)]
    padding = [rng.randint(0, taps // 2) for taps in kernel]
    dilation = [rng.choice([1, 1, 1, 2]) for _ in kernel]
    up = rng.random() < 0.3
    windows = []
    for i in (0, 1):
        span = size[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        count = -(-span // stride[i]) + 1 if up else span // stride[i] + 1
        windows.append(max(0, count - 1 if up and (count - 1) * stride[i] >= size[2 + i] + padding[i] else count))
    arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": up}
    return arguments, [*size[:2], *windows]


def fitting(operator: str, rng: random.Random) -> Arguments:
    """Mostly valid arguments, in the order of the schema."""
    dtype = rng.choice(FLOATING)
    put = lambda size, type=dtype: tensor(rng, size, type)  # noqa: E731
    numbers, x, w, y = convolution(rng)
    if operator == "conv2d":
        bias = put([w[0]]) if rng.random() < 0.5 else None
        return {"input": put(x), "weight": put(w), "bias": bias, **numbers}
    if operator == "conv2d_backward_data":
        last = rng.random() < 0.5
        return {"grad_output": put(y), "weight": put(w), "input_size": x, **numbers, "channels_last": last}
    if operator == "conv2d_backward_weight":
        last = rng.random() < 0.5
        return {"grad_output": put(y), "input": put(x), "kernel_size": w[2:], **numbers, "channels_last": last}
    needs = {"needs_input": rng.random() < 0.8, "needs_weight": rng.random() < 0.8}
    if operator == "conv2d_backward":
        return {"grad_output": put(y), "input": put(x), "weight": put(w), **needs, **numbers}
    if operator.startswith("batch_norm"):
        return batch_norm(operator, rng)
    if operator.startswith("linear"):
        return linear(operator, rng)
    if operator == "conv2d_inference":
        return inference(rng)
    if operator == "conv2d_chain":
        return chain(rng)
    pooling, pooled = pool(rng, x)
    if operator == "max_pool2d":
        return {"input": put(x, rng.choice(FLOATING + INTEGER)), **pooling}
    if operator == "max_pool2d_backward":
        del pooling["ceil_mode"]
        indices = tensor(rng, pooled, torch.int64)
        last = rng.random() < 0.5
        return {"grad_output": put(pooled), "indices": indices, "input_size": x, **pooling, "channels_last": last}
    if operator in ("relu", "relu_"):
        return {"input": put(x, rng.choice(FLOATING + INTEGER))}
    if operator == "relu_backward":
        return {"grad_output": put(x), "output": put(x)}
    if operator == "conv2d_relu":
        bias = put([w[0]]) if rng.random() < 0.5 else None
        return {"input": put(x), "weight": put(w), "bias": bias, **numbers}
    if operator == "conv2d_relu_backward":
        return {
            "grad_output": put(y),
            "argmax": marks(rng, y, 1),
            "input": put(x),
            "weight": put(w),
            **needs,
            **numbers,
        }
    pooling, pooled = pool(rng, y)
    up = pooling.pop("ceil_mode")
    fused = {**numbers, **{f"pool_{name}": value for name, value in pooling.items()}}
    if operator == "conv2d_relu_max_pool2d":
        return {"input": put(x), "weight": put(w), "bias": None, **fused, "pool_ceil_mode": up}
    if operator == "conv2d_relu_max_pool2d_backward":
        window = pooling["kernel_size"][0] * pooling["kernel_size"][1]
        argmax = marks(rng, pooled, window)
        return {"grad_output": put(pooled), "argmax": argmax, "input": put(x), "weight": put(w), **needs, **fused}
    raise AssertionError(f"tests/attack.py does not know the operator {operator}: add its arguments to fitting()")


def batch_norm(operator: str, rng: random.Random) -> Arguments:
    """Mostly valid arguments of the operators of batch norm."""
    dtype = rng.choice(FLOATING)
    size = [rng.randint(1, 9) for _ in range(rng.choice([2, 3, 4, 4, 4, 5]))]
    vector = lambda: tensor(rng, size[1:2], rng.choice([dtype, torch.float32]))  # noqa: E731
    optional = lambda: vector() if rng.random() < 0.7 else None  # noqa: E731
    x, numbers = tensor(rng, size, dtype), {"momentum": 0.1, "eps": 1e-5}
    if operator == "batch_norm_statistics":
        running = [t if t is None else t.contiguous() for t in (optional(), optional())]
        return {"input": x, "running_mean": running[0], "running_var": running[1], **numbers}
    other = tensor(rng, size, dtype) if rng.random() < 0.5 else None
    vectors = {"weight": optional(), "bias": optional(), "mean": vector(), "spread": vector()}
    if operator == "batch_norm":
        rest = {"training": rng.random() < 0.5, "eps": 1e-5, "activation": rng.randrange(6)}
        return {"input": x, **vectors, "residual": other, **rest}
    rest = {"training": rng.random() < 0.5, "eps": 1e-5, "activation": rng.randrange(3)}
    needs = {"needs_input": rng.random() < 0.8, "needs_residual": rng.random() < 0.5}
    return {"grad_output": tensor(rng, size, dtype), "input": x, **vectors, "output": other, **rest, **needs}


def linear(operator: str, rng: random.Random) -> Arguments:
    """Mostly valid arguments of the operators of linear layers."""
    dtype = rng.choice(FLOATING)
    *rows, C, K = (rng.choice([0, 1, 1, 2, 3, 7, 16, 40]) for _ in range(rng.randint(2, 5)))
    optional = lambda size: tensor(rng, size, dtype) if rng.random() < 0.7 else None  # noqa: E731
    if operator == "linear":
        weight = tensor(rng, [K, C], dtype)
        return {"input": tensor(rng, [*rows, C], dtype), "weight": weight, "bias": optional([K])}
    grad_output = tensor(rng, [*rows, K], dtype)
    return {"grad_output": grad_output, "input": optional([*rows, C]), "weight": optional([K, C])}


def inference(rng: random.Random) -> Arguments:
    """Mostly valid arguments of conv2d_inference."""
    dtype = rng.choice(FLOATING)
    numbers, x, w, y = convolution(rng)
    vector = lambda: tensor(rng, w[:1], dtype)  # noqa: E731
    norm = [vector() if rng.random() < 0.7 else None for _ in range(4)]
    norm[1] = None if norm[0] is None else vector()
    names = ("running_mean", "running_var", "norm_weight", "norm_bias")
    residual = tensor(rng, y, dtype) if rng.random() < 0.5 else None
    vectors = {"bias": vector() if rng.random() < 0.5 else None, **dict(zip(names, norm, strict=True))}
    rest = {"eps": 1e-5, "activation": rng.randrange(6), "slope": 0.1}
    return {
        "input": tensor(rng, x, dtype),
        "weight": tensor(rng, w, dtype),
        **vectors,
        "residual": residual,
        **numbers,
        **rest,
    }


def chain(rng: random.Random) -> Arguments:
    """Mostly valid arguments of conv2d_chain: a convolution, then a batch norm, with or without additions."""
    dtype = rng.choice(FLOATING)
    numbers, x, w, y = convolution(rng)
    vector = lambda: tensor(rng, w[:1], dtype)  # noqa: E731
    residual = rng.random() < 0.5
    inputs = [tensor(rng, x, dtype), *([tensor(rng, y, dtype)] if residual else [])]
    geometry = [*numbers["stride"], *numbers["padding"], *numbers["dilation"], numbers["groups"]]
    first = [0, 1 if residual else -1, *geometry, rng.randrange(6), rng.randrange(2)]
    second = [len(inputs), rng.choice([-1, len(inputs)]), 1, 1, 0, 0, 1, 1, 1, rng.randrange(6), 0]
    return {
        "inputs": inputs,
        "weights": [tensor(rng, w, dtype), vector()],
        "biases": [vector(), vector()],
        "steps": first + second,
        "slopes": [0.1, 0.1],
        "results": [len(inputs), len(inputs) + 1],
    }


def marks(rng: random.Random, size: list[int], window: int) -> Tensor:
    """A random argmax: positions in the window and 255, or arbitrary bytes."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    if rng.random() < 0.5:
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    positions = torch.randint(0, window + 1, size, generator=generator)
    return laid_out(rng, torch.where(positions == window, 255, positions).to(torch.uint8))


# ---- arguments that do not fit -----------------------------------------------------------------------------------


def spoilt(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, -1, 2, 3, 5, 1000, *HUGE, -(2**63), 1.5, None])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf"), None, [0.5]])
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        changed = list(value)
        at = rng.randrange(len(changed))
        changed[at] = spoilt_tensor(rng, changed[at])
        return rng.choice([changed, changed, changed[:-1], changed * 2])
    if isinstance(value, list):
        changed = list(value)
        kind = rng.randrange(4)
        if kind == 0:
            return rng.choice([[], [1], changed[:-1], [*changed, 1], changed * 2])
        if not changed:
            return [1, 1]
        at = rng.randrange(len(changed))
        changed[at] = rng.choice([0, -1, 1, 2, 5, 17, 70_000]) if kind < 3 else rng.choice([*HUGE, -(2**31), -(2**63)])
        return changed
    if isinstance(value, Tensor):
        return spoilt_tensor(rng, value)
    return tensor(rng, [rng.randint(0, 5)], torch.float32)  # value is None: an absent tensor


def spoilt_tensor(rng: random.Random, value: Tensor) -> Any:
    kind = rng.randrange(12)
    size = list(value.shape)
    if kind == 0:
        return tensor(rng, size, rng.choice(FLOATING + INTEGER + OTHER))
    if kind == 1:
        return value.to("meta")
    if kind == 2 and max(size, default=0) < 2**20:
        return value.to_sparse()
    if kind == 3:
        return tensor(rng, rng.choice([[], [1, *size], size[1:], size[:-1]]), value.dtype)
    if kind == 4:
        return None
    if kind == 5 and size:  # a huge tensor that occupies the memory of one element
        size[rng.randrange(len(size))] = rng.choice(HUGE)
        return enormous(size, value.dtype)
    if kind == 6 and size:
        return enormous(
            [rng.choice([2**16, 2**20, 2**31]) if rng.random() < 0.5 else side for side in size], value.dtype
        )
    if not size:
        return value
    size[rng.randrange(len(size))] = rng.choice([0, 1, 2, 5, 16, 33])
    return tensor(rng, size, value.dtype)


def enormous(size: list[int], dtype: torch.dtype) -> Any:
    try:
        return torch.ones((), dtype=dtype).expand(size)
    except RuntimeError:  # PyTorch cannot count its elements in 64 bits
        rng = random.Random(0)
        return tensor(rng, [rng.randint(0, 2) for _ in size], dtype)


# ---- the attack --------------------------------------------------------------------------------------------------


def outcome(function: Callable[..., Any], arguments: Iterable[Any]) -> tuple[Any, str]:
    """The result and an empty string, or None and the error."""
    try:
        return function(*arguments), ""
    except Exception as error:  # of any type: the callers check its text
        return None, f"{type(error).__name__}: {error}"


def parts(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result or ())


def of_machine(error: str) -> bool:
    """True if the machine or PyTorch's dispatcher refused the call. Fake kernels cannot predict that."""
    words = "allocate memory", "enough memory", "at most 2^50", "2^31 - 1 pixels", "Storage size", "backend"
    return any(word in error for word in words)


def names_a_path(error: str) -> bool:
    if "CPU: registered " in error:  # the dispatcher's error lists where each kernel is registered
        return "at /" in error.partition("CPU: registered ")[2].partition("\n")[0]
    return any(text in error for text in ("API call failed", "csrc/", "site-packages", "_C.cpython", "std::bad_alloc"))


def complaint(operator: str, arguments: Arguments) -> str:
    """Describe what the call did wrong. Empty if nothing is wrong."""
    call = getattr(torch.ops.fastconv, operator).default
    tensors = [value for value in tree_leaves(arguments) if isinstance(value, Tensor)]
    plain = all(value.device.type == "cpu" and value.layout is torch.strided for value in tensors)
    on_meta = tree_map_only(Tensor, fake, list(arguments.values()))
    expected = (None, "")
    if plain and max((side for value in tensors for side in value.shape), default=0) < 1000:
        expected = counterpart(operator, arguments)
    result, error = outcome(call, arguments.values())
    if names_a_path(error):
        return f"the error shows internals: {error}"
    optional = {argument.name for argument in call._schema.arguments if isinstance(argument.type, torch.OptionalType)}
    if not plain or any(value is None for name, value in arguments.items() if name not in optional):
        return "" if error or not plain else "the operator accepts None in place of a tensor"
    declared, refused = outcome(call, on_meta)
    if error:
        if not refused and not of_machine(error):
            return f"the fake kernel accepts what the operator does not: {error}"
        if refused and not of_machine(error) and error.splitlines()[0] != refused.splitlines()[0]:
            return f"the operator says {error!r}, its fake kernel {refused!r}"
        if expected[0] is not None and not of_machine(error):
            return f"PyTorch accepts the call, the operator says {error!r}"
        return ""
    if refused:
        return f"the operator accepts what its fake kernel does not: {refused}"
    for part, said in zip(parts(result), parts(declared), strict=True):
        if (part.shape, steps(part), part.dtype) != (said.shape, steps(said), said.dtype):
            return f"the result is {described(('', part))}, and declared as {described(('', said))}"
    if expected[1]:
        return f"the operator accepts what PyTorch does not: {expected[1]}"
    for part, theirs in zip(parts(result), parts(expected[0]), strict=False):
        if part.shape != theirs.shape:
            return f"the result is {list(part.shape)}, PyTorch's {list(theirs.shape)}"
    return ""


def fake(value: Tensor) -> Tensor:
    if value.layout is not torch.strided:
        return value.to("meta")
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def steps(value: Tensor) -> list[int]:
    """The strides of the dimensions with more than one element."""
    return [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]


def counterpart(operator: str, arguments: Arguments) -> tuple[Any, str]:
    """PyTorch's result or error. Both are empty for arguments that only fastconv.functional accepts."""
    if "input" not in arguments:
        return None, ""
    lists = [value for value in arguments.values() if isinstance(value, list)]
    numbers = [number for value in lists for number in value]
    if any(len(value) != 2 for value in lists) or any(abs(number) > 1000 for number in numbers):
        return None, ""
    x = arguments.get("input")
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in FLOATING:
        return None, ""
    if x.shape[0] == 0:  # F.conv2d then accepts a dilation of 0
        return None, ""
    if operator == "conv2d":
        others = [arguments["weight"], arguments["bias"]]
        if x.shape[1] == 0 or any(isinstance(t, Tensor) and t.dtype != x.dtype for t in others):
            return None, ""
        if not isinstance(arguments["groups"], int) or abs(arguments["groups"]) > 1000:
            return None, ""
        return outcome(F.conv2d, arguments.values())
    if operator == "max_pool2d":
        return outcome(torch.ops.aten.max_pool2d_with_indices, arguments.values())
    return None, ""


def attack_operator(operator: str, count: int, seed: int, trace: bool, first: int = 0) -> list[str]:
    complaints = []
    for number in range(first, first + count):
        rng = random.Random(f"{seed} {operator} {number}")
        arguments = fitting(operator, rng)
        for name in rng.sample(sorted(arguments), min(rng.choice([0, 1, 1, 1, 2, 3]), len(arguments))):
            arguments[name] = spoilt(rng, arguments[name])
        if trace:
            print(f"{operator}:{number}", *(described(item) for item in arguments.items()), flush=True)
        wrong = complaint(operator, arguments)
        if wrong:
            complaints.append(f"{operator}:{number}: {wrong}\n    {' '.join(map(described, arguments.items()))}")
    return complaints


def described(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, list) and any(isinstance(element, Tensor) for element in value):
        return f"{name}=[{', '.join(described(('', element)) for element in value)}]"
    if not isinstance(value, Tensor):
        return f"{name}={value}"
    strides = list(value.stride()) if value.layout is torch.strided else value.layout
    return f"{name}={value.device}:{value.dtype}{list(value.shape)}{strides}".replace("torch.", "")


def attack_module(count: int, seed: int, trace: bool) -> list[str]:
    """Call the functions of fastconv._C with arbitrary arguments."""
    rng = random.Random(seed)
    level = _C.cpu_capability()
    values = [None, 0, -1, 2**63, 1.5, "", "avx2", "\0", "x" * 100_000, b"avx512", [], {}, object(), torch.ones(2)]
    complaints = []
    functions = sorted(name for name in dir(_C) if not name.startswith("_") and callable(getattr(_C, name)))
    for name in functions:
        for _ in range(count):
            arguments = [rng.choice(values) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
            if trace:
                print(name, str(arguments)[:200], flush=True)
            _, error = outcome(getattr(_C, name), arguments)
            if names_a_path(error):
                complaints.append(f"_C.{name}({arguments}): {error}")
    _C.set_cpu_capability(level)
    return complaints


def refuse_large_allocations() -> None:
    """Limit memory to 3 GiB more than now, so that a large allocation fails at once and is not slowly filled."""
    more = 3 << 30
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="calls per operator and function (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="an operator, or one call of an operator: conv2d:17")
    parser.add_argument("--trace", action="store_true", help="print each call before it is made")
    parser.add_argument("--any-memory", action="store_true", help="do not limit memory: sanitizers reserve much of it")
    options = parser.parse_args()
    if not options.any_memory:
        refuse_large_allocations()
    only, _, number = options.only.partition(":")
    complaints = []
    for operator in [only] if only else names():
        count, first = (1, int(number)) if number else (options.count, 0)
        found = attack_operator(operator, count, options.seed, options.trace, first)
        print(f"{operator}: {count} calls, {len(found)} complaints", flush=True)
        complaints += found
    if not only:
        complaints += attack_module(options.count, options.seed, options.trace)
    for line in complaints[:50]:
        print(line)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
