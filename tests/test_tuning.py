"""fastconv.tune() times the candidates of each convolution, and keeps the fastest. Every candidate is right."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from forked import Python
from torch import Tensor
from torch.nn import functional as F

import fastconv
import fastconv.functional as FF
from fastconv import _C, tuning
from fastconv import nn as fnn

Tensors = list[Tensor]

#: Sizes of input and weight, and arguments. Together they have every candidate.
CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 32, 14, 14), (32, 32, 3, 3), {"padding": 1}),
    "first layer": ((3, 1, 16, 16), (8, 1, 3, 3), {}),
    "5x5, stride": ((2, 6, 17, 13), (10, 6, 5, 5), {"stride": 2, "padding": 2}),
    "1x1": ((2, 32, 7, 7), (48, 32, 1, 1), {}),
    "depthwise": ((2, 16, 12, 12), (16, 1, 3, 3), {"padding": 1, "groups": 16}),
    "groups, dilation": ((2, 12, 11, 11), (8, 6, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}),
    "few outputs": ((1, 64, 5, 5), (32, 64, 3, 3), {}),
}
PASSES = ("forward", "backward_data", "backward_weight")
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _nothing_tuned() -> Iterator[None]:
    """Let PyTorch's operator be a candidate, although the tests run with FASTCONV_ALGORITHM=own."""
    _C.set_algorithms({"torch": "measured"})
    fastconv.tuning.clear()
    yield
    fastconv.tuning.clear()
    _C.set_algorithms({})


def operands(name: str, dtype: torch.dtype, channels_last: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    x_size, w_size, _ = CALLS[name]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, w = (torch.randn(size).to(dtype, memory_format=memory_format) for size in (x_size, w_size))
    return x.requires_grad_(), w.requires_grad_(), torch.randn(w_size[0]).to(dtype).requires_grad_()


def ours(name: str, fused: str) -> Callable[..., Tensor]:
    functions: dict[str, Callable[..., Tensor]] = {
        "conv2d": FF.conv2d,
        "ReLU": FF.conv2d_relu,
        "pool": FF.conv2d_relu_max_pool2d,
    }
    return lambda x, w, b: functions[fused](x, w, b, **CALLS[name][2])


def reference(name: str, fused: str) -> Callable[..., Tensor]:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = F.conv2d(x, w, b, **CALLS[name][2])
        y = F.relu(y) if fused != "conv2d" else y
        return F.max_pool2d(y, 2) if fused == "pool" else y

    return function


def with_gradients(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], zeros: float = 0.0) -> Tensors:
    """Return the result and the gradients, for a grad_output with a share of zeros."""
    y = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(y.shape, generator=generator) * (torch.rand(y.shape, generator=generator) >= zeros)
    return [y.detach(), *torch.autograd.grad(y, tensors, torch.empty_like(y).copy_(g))]


def close(found: Tensors, name: str, fused: str, tensors: tuple[Tensor, ...], zeros: float = 0.0) -> None:
    """Compare with PyTorch in float64. Errors are relative to the largest value.

    Rounding may move a maximum of a pool to another pixel, so a few gradients may differ in 16 bits.
    """
    exact = with_gradients(reference(name, fused), tuple(t.detach().double().requires_grad_() for t in tensors), zeros)
    for mine, wanted in zip(found, exact, strict=True):
        difference = (mine.double() - wanted).abs() / wanted.abs().max().clamp(min=1e-30)
        limit = TOLERANCE[mine.dtype]
        if mine.dtype == torch.bfloat16 and fused != "conv2d":
            assert (difference > limit).double().mean() < 0.02
        else:
            assert difference.max() <= limit


def chosen() -> dict[str, str]:
    return {choice.pass_: choice.chosen for choice in tuning.choices()}


def choose(algorithm: str, pass_: str, **changes: Any) -> None:
    """Replace the choice for a pass that was tuned."""
    entries = [entry for entry in _C.tuned_choices() if entry["pass"] == pass_]
    assert entries
    _C.restore_tuned_choices([{**entry, "chosen": algorithm, **changes} for entry in entries])


@pytest.mark.parametrize("fused", ["conv2d", "ReLU", "pool"])
@pytest.mark.parametrize("name", CALLS)
def test_every_candidate_gives_pytorchs_results(name: str, fused: str) -> None:
    for dtype in TOLERANCE:
        for channels_last, zeros in ((True, 0.0), (False, 0.8)):
            fastconv.tuning.clear()
            tensors = operands(name, dtype, channels_last)
            with fastconv.tune():
                close(with_gradients(ours(name, fused), tensors, zeros), name, fused, tensors, zeros)
            made = tuning.choices()
            assert sorted(choice.pass_ for choice in made) == sorted(PASSES)
            for choice in made:
                assert {"torch", "direct"} <= choice.microseconds.keys()
                for algorithm in choice.microseconds:
                    choose(algorithm, choice.pass_)
                    close(with_gradients(ours(name, fused), tensors, zeros), name, fused, tensors, zeros)


def test_the_calls_of_these_tests_have_every_candidate() -> None:
    found = set()
    for name in CALLS:
        for fused in ("conv2d", "ReLU", "pool"):
            with fastconv.tune():
                with_gradients(ours(name, fused), operands(name, torch.float32), 0.5)
            found |= {algorithm for choice in tuning.choices() for algorithm in choice.microseconds}
    expected = {
        "torch", "direct", "pool_in_registers", "thin_groups", "winograd_2", "winograd_3", "small_output",
        "sparse_gradient", "weight_as_patches", "gemm", "few_channels",
        "image_filter",
    }  # fmt: skip
    if _C.cpu_capability() == "default":
        expected.discard("winograd_3")
    assert found == expected


def test_the_fastest_candidate_is_kept_for_later_calls() -> None:
    tensors = operands("3x3", torch.float32)
    with fastconv.tune():
        first = with_gradients(ours("3x3", "conv2d"), tensors)
        made = tuning.choices()
        second = with_gradients(ours("3x3", "conv2d"), tensors)
    after = with_gradients(ours("3x3", "conv2d"), tensors)
    assert tuning.choices() == made
    for again in (second, after):
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    for choice in made:
        fastest = min(choice.microseconds.values())
        assert choice.microseconds[choice.chosen] <= 1.031 * fastest
        assert choice.chosen == choice.planned or choice.microseconds[choice.chosen] == fastest


def plan(pass_: str, name: str, **options: Any) -> dict[str, Any]:
    x, w, arguments = CALLS[name]
    pairs = [(arguments.get(key, default),) * 2 for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return _C.plan(pass_, x, w, *pairs, arguments.get("groups", 1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CALLS)
def test_the_plan_names_the_choice(name: str) -> None:
    with fastconv.tune():
        with_gradients(ours(name, "conv2d"), operands(name, torch.float32))
    algorithms = {"winograd_2": "winograd", "winograd_3": "winograd", "weight_as_patches": "sparse_gradient"}
    for choice in tuning.choices():
        for algorithm in choice.microseconds:
            choose(algorithm, choice.pass_)
            found = plan(choice.pass_, name, nonzero=1.0)
            assert found["algorithm"] == algorithms.get(algorithm, algorithm)
            if found["algorithm"] == "winograd":
                side = max(max(tile[:2]) for tile in found["tiles"])
                assert max(side, 2) == int(algorithm[-1])  # a tile of one output is possible, too


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("x", "w"), [((2, 16, 3, 3), (8, 16, 3, 3)), ((2, 4, 6, 6), (1, 4, 3, 3))], ids=str)
def test_the_plan_names_the_choice_for_a_result_of_one_pixel_or_one_channel(
    x: tuple[int, ...], w: tuple[int, ...], channels_last: bool
) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [torch.randn(size).to(memory_format=memory_format).requires_grad_() for size in (x, w)]
    with fastconv.tune():
        y = FF.conv2d(*tensors)
        torch.autograd.grad(y, tensors, torch.randn_like(y))
    assert chosen().keys() == set(PASSES)
    for pass_ in PASSES:
        for algorithm in ("torch", "direct"):
            choose(algorithm, pass_)
            assert _C.plan(pass_, x, w, channels_last=channels_last)["algorithm"] == algorithm


def test_nothing_is_timed_outside_of_the_context() -> None:
    tensors = operands("3x3", torch.float32)
    with_gradients(ours("3x3", "conv2d"), tensors)
    assert tuning.choices() == ()
    with fastconv.tune():
        pass
    with_gradients(ours("3x3", "conv2d"), tensors)
    assert tuning.choices() == ()
    assert str(tuning.choices()) == "no choices: no convolution ran within fastconv.tune()"


def test_contexts_nest_decorate_and_end_with_an_exception() -> None:
    @fastconv.tune()
    def decorated() -> None:
        with fastconv.tune():
            with_gradients(ours("1x1", "conv2d"), operands("1x1", torch.float32))
        FF.conv2d(*(t.detach() for t in operands("few outputs", torch.float32)))

    decorated()
    assert len(tuning.choices()) == 4
    with pytest.raises(RuntimeError, match="Given groups"), fastconv.tune():
        FF.conv2d(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 1, 1))
    FF.conv2d(*(t.detach() for t in operands("3x3", torch.float32)))
    assert len(tuning.choices()) == 4


def test_a_choice_is_for_one_shape_dtype_memory_format_and_number_of_threads() -> None:
    x, w, b = (t.detach() for t in operands("3x3", torch.float32))
    variants: list[Callable[[], Tensor]] = [
        lambda: FF.conv2d(x, w, b, padding=1),
        lambda: FF.conv2d(x[:1], w, b, padding=1),
        lambda: FF.conv2d(x, w, b),
        lambda: FF.conv2d(x.double(), w.double(), b.double(), padding=1),
        lambda: FF.conv2d(x.contiguous(), w, b, padding=1),
        lambda: FF.conv2d_relu(x, w, b, padding=1),
    ]
    with fastconv.tune():
        for count, call in enumerate(variants, 1):
            for _ in range(2):
                call()
            assert len(tuning.choices()) == count
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        variants[0]()
    assert [choice.threads for choice in tuning.choices()] == [threads] * len(variants) + [threads + 1]


def test_a_choice_is_for_one_isa_level() -> None:
    if len(_C.cpu_capabilities()) == 1:
        pytest.skip("this machine has one ISA level")
    before = _C.cpu_capability()
    with fastconv.tune():
        FF.conv2d(*(t.detach() for t in operands("few outputs", torch.float32)))
    choose("small_output", "forward")
    assert plan("forward", "few outputs")["algorithm"] == "small_output"
    choose("direct", "forward")
    assert plan("forward", "few outputs")["algorithm"] == "direct"
    try:
        _C.set_cpu_capability("default")
        assert plan("forward", "few outputs")["algorithm"] == "small_output"  # by the rules
    finally:
        _C.set_cpu_capability(before)


def test_a_file_has_the_choices_for_one_isa_level(tmp_path: Path) -> None:
    if len(_C.cpu_capabilities()) == 1:
        pytest.skip("this machine has one ISA level")
    before = _C.cpu_capability()
    x, w, b = (t.detach() for t in operands("few outputs", torch.float32))
    with fastconv.tune():
        FF.conv2d(x, w, b)
        choose("small_output", "forward")
        try:
            _C.set_cpu_capability("default")
            assert tuning.choices() == ()
            FF.conv2d(x, w, b)
            choose("direct", "forward")
            assert tuning.save(tmp_path / "default.json") == 1
        finally:
            _C.set_cpu_capability(before)
    assert tuning.save(tmp_path / "before.json") == 1
    tuning.clear()
    assert tuning.load(tmp_path / "before.json") == 1
    assert chosen() == {"forward": "small_output"}
    with pytest.raises(tuning.OtherMachineError, match="cpu_level 'default'"):
        tuning.load(tmp_path / "default.json")


def test_the_share_of_zeros_decides_which_choice_counts() -> None:
    def planned(nonzero: float) -> str:
        return str(plan("backward_weight", "3x3", nonzero=nonzero)["algorithm"])

    by_rules = {share: planned(share) for share in (0.6, 0.9)}
    tensors = operands("3x3", torch.float32)
    with fastconv.tune():
        with_gradients(ours("3x3", "conv2d"), tensors, 0.55)
    assert {choice.eighths for choice in tuning.choices() if choice.pass_ != "forward"} == {4}

    choose("sparse_gradient", "backward_weight")
    assert planned(0.45) == planned(0.1) == "sparse_gradient"  # fewer values make it faster
    assert planned(0.9) == by_rules[0.9] != "sparse_gradient"
    choose("torch", "backward_weight", eighths=6)
    assert planned(0.7) == planned(1.0) == "torch"  # more values make sparse_gradient slower, and PyTorch not
    assert planned(0.5) == "sparse_gradient"
    assert planned(0.6) == by_rules[0.6] != "torch"  # between the two, the rules decide


def test_a_call_that_the_rules_leave_to_pytorch_can_be_won_back() -> None:
    x, w = torch.randn(1, 8, 28, 28), torch.randn(8, 8, 3, 3)
    call = {"padding": 40, "dilation": 40}
    arguments = ("forward", x.shape, w.shape, (1, 1), (40, 40), (40, 40))
    assert _C.plan(*arguments, channels_last=False)["algorithm"] == "torch"
    with fastconv.tune():
        y = FF.conv2d(x, w, **call)
    (choice,) = tuning.choices()
    assert choice.planned == "torch"
    choose("direct", "forward")
    assert _C.plan(*arguments, channels_last=False)["algorithm"] == "direct"
    torch.testing.assert_close(FF.conv2d(x, w, **call), y, rtol=1e-4, atol=1e-4)


def convolutions(call: Callable[[], object]) -> int:
    """Count the calls of PyTorch's convolution."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.name in ("aten::convolution", "aten::convolution_backward") for event in profile.events())


@pytest.mark.parametrize("fused", ["conv2d", "ReLU"])
def test_the_chosen_operator_really_runs(fused: str) -> None:
    tensors = operands("3x3", torch.float32)

    def call() -> object:
        return with_gradients(ours("3x3", fused), tensors)

    with fastconv.tune():
        call()
    gradients = 1 if fused == "conv2d" else 2  # one call computes both gradients of an unfused convolution
    for algorithm, expected in (("torch", 1 + gradients), ("direct", 0)):
        for pass_ in PASSES:
            choose(algorithm, pass_)
        assert convolutions(call) == expected


def test_pytorch_is_no_candidate_if_only_own_algorithms_are_allowed() -> None:
    _C.set_algorithms({})  # the tests run with FASTCONV_ALGORITHM=own
    with fastconv.tune():
        with_gradients(ours("1x1", "ReLU"), operands("1x1", torch.float32))
    assert tuning.choices()
    assert all("torch" not in choice.microseconds for choice in tuning.choices())
    for pass_ in PASSES:
        choose("torch", pass_)  # as in a file of another process
        assert plan(pass_, "1x1", relu=True)["algorithm"] != "torch"


def test_forced_algorithms_are_not_tuned() -> None:
    _C.set_algorithms({"winograd": "never"})
    with fastconv.tune():
        with_gradients(ours("3x3", "conv2d"), operands("3x3", torch.float32))
    assert tuning.choices() == ()


def test_a_choice_never_exceeds_the_largest_tile_of_winograd() -> None:
    with fastconv.tune():
        FF.conv2d(*(t.detach() for t in operands("3x3", torch.float32)), padding=1)
    choose("winograd_4", "forward")  # as in a file of a process with FASTCONV_WINOGRAD=4
    assert max(max(tile[:2]) for tile in plan("forward", "3x3")["tiles"]) <= 3
    _C.set_algorithms({"torch": "measured"}, 0)
    assert plan("forward", "3x3")["algorithm"] == "direct"


def test_winograd_is_no_candidate_where_it_is_inexact() -> None:
    with fastconv.tune():
        for channels in (7, 8):
            FF.conv2d(torch.randn(2, channels, 9, 9), torch.randn(16, channels, 3, 3))
    few, enough = tuning.choices()
    assert "winograd_2" not in few.microseconds
    assert "winograd_2" in enough.microseconds


def test_calls_that_some_candidates_cannot_compute_are_not_tuned() -> None:
    x, w, b = operands("3x3", torch.float32)
    with torch.no_grad():
        x[0, 0, 0, 0] = torch.inf
        w[0, 0, 0, 0] = torch.nan
    with fastconv.tune():
        with_gradients(ours("3x3", "conv2d"), (x, w, b), 0.9)
        FF.conv2d(torch.ones(0, 2, 5, 5), torch.ones(3, 2, 3, 3))
    assert [choice.pass_ for choice in tuning.choices()] == ["forward"]
    fastconv.tuning.clear()
    finite = operands("3x3", torch.float32)
    with fastconv.tune():
        with_gradients(ours("3x3", "conv2d"), finite, 0.9)
    choose("sparse_gradient", "backward_data")
    choose("sparse_gradient", "backward_weight")
    grad_x, grad_w = with_gradients(ours("3x3", "conv2d"), (x, w, b), 0.9)[1:3]
    assert grad_x.isnan().any()  # zero times NaN is not zero
    assert grad_w.isnan().any()


def test_large_calls_are_tuned_as_one_although_they_run_in_bands() -> None:
    _C.set_algorithms({"torch": "measured"}, -1, 3000)
    for fused in ("conv2d", "pool"):
        for dtype in (torch.float32, torch.bfloat16):
            fastconv.tuning.clear()
            tensors = operands("3x3", dtype)
            with fastconv.tune():
                with_gradients(ours("3x3", fused), tensors, 0.6)
            assert len(tuning.choices()) == 3
            for choice in tuning.choices():
                for algorithm in choice.microseconds:
                    choose(algorithm, choice.pass_)
                    close(with_gradients(ours("3x3", fused), tensors, 0.6), "3x3", fused, tensors, 0.6)


# ---- every way to call fastconv -------------------------------------------------------------------------------------


def routes() -> dict[str, Callable[[Tensor], Tensor]]:
    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))

    def enabled(x: Tensor) -> Tensor:
        with fastconv.enabled(fuse=True):
            return plain(x)

    plain, layer = model(), fnn.Conv2d(16, 16, 3)
    return {
        "function": lambda x: FF.conv2d(x, layer.weight),
        "layer": layer,
        "converted": fastconv.convert(model()),
        "enabled": enabled,
        "compiled": torch.compile(fastconv.convert(model()), backend="aot_eager", fullgraph=True),
        "autocast": lambda x: torch.autocast("cpu")(layer)(x),
        "vmap": lambda x: torch.vmap(lambda image: FF.conv2d(image, layer.weight))(x.unsqueeze(1)),
    }


@pytest.mark.parametrize("name", ["function", "layer", "converted", "enabled", "compiled", "autocast", "vmap"])
def test_every_way_to_call_fastconv_is_tuned(name: str) -> None:
    route = routes()[name]
    x = torch.randn(2, 16, 10, 10)
    expected = route(x).detach()
    with fastconv.tune():
        y = route(x.requires_grad_())
        y.sum().backward()
    assert {choice.pass_ for choice in tuning.choices()} == set(PASSES)
    limit = 2e-2 if y.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.detach(), expected, rtol=limit, atol=limit)


def test_two_threads_tune_at_the_same_time() -> None:
    names = [*CALLS, *CALLS]
    failures: list[BaseException] = []

    def work(names: list[str]) -> None:
        try:
            for name in names:
                tensors = operands(name, torch.float32)
                for _ in range(3):
                    close(with_gradients(ours(name, "conv2d"), tensors), name, "conv2d", tensors)
        except BaseException as error:
            failures.append(error)

    with fastconv.tune():
        workers = [threading.Thread(target=work, args=(part,)) for part in (names, names[::-1])]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert failures == []
    assert len(tuning.choices()) == 3 * len(CALLS)


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_choices_are_logged_once_and_shown_as_a_table(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastconv.tuning"):
        for _ in range(2):
            with fastconv.tune():
                with_gradients(ours("5x5, stride", "pool"), operands("5x5, stride", torch.bfloat16), 0.5)
    made = tuning.choices()
    assert [record.getMessage() for record in caplog.records] == list(map(str, made))
    table = repr(made)
    lines = table.splitlines()
    assert len(lines) == 1 + len(made)
    for line, choice in zip(lines[1:], made, strict=True):
        assert line.startswith(choice.call())
        assert all(algorithm in line for algorithm in choice.microseconds)
    assert "2x6x17x13, 10x6x5x5, stride 2, padding 2, ReLU, pool 2, bfloat16, nhwc" in table
    assert "/8 non-zero" in table


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with 3 choices for each operator. Ceil mode, strides and paddings of the pool are in it, too."""
    with fastconv.tune():
        with_gradients(ours("3x3", "conv2d"), operands("3x3", torch.float32), 0.5)
        with_gradients(ours("first layer", "ReLU"), operands("first layer", torch.bfloat16, False), 0.5)
        x, w, b = operands("3x3", torch.float32)
        y = FF.conv2d_relu_max_pool2d(x, w, b, 1, 1, pool_kernel_size=(3, 2), pool_stride=(2, 3), pool_padding=(1, 0),
                                      pool_ceil_mode=True)  # fmt: skip
        y.sum().backward()
    path = tmp_path / "tuning.json"
    assert tuning.save(path) == 9
    return path


def test_saved_choices_are_the_same_after_load(saved: Path) -> None:
    before = tuning.choices()
    fastconv.tuning.clear()
    assert tuning.choices() == ()
    assert tuning.load(saved) == 9
    assert tuning.choices() == before
    with fastconv.tune():  # the calls are known
        with_gradients(ours("3x3", "conv2d"), operands("3x3", torch.float32), 0.5)
    assert tuning.choices() == before
    assert tuning.load(str(saved)) == 9
    assert tuning.choices() == before
    tuning.save(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["tuning.json"]


# Without ceil_mode, these pools have no window.
@pytest.mark.parametrize(("size", "pool"), [(3, (2, 2)), (4, (3, 2)), (4, (4, 4)), (3, (2, 7))])
def test_a_pool_with_one_window_in_ceil_mode_is_saved_and_loaded(
    size: int, pool: tuple[int, int], tmp_path: Path
) -> None:
    x, w = torch.randn(2, 16, size, size), torch.randn(16, 16, 3, 3)
    with fastconv.tune():
        y = FF.conv2d_relu_max_pool2d(x, w, pool_kernel_size=pool[0], pool_stride=pool[1], pool_ceil_mode=True)
    assert y.shape[2:] == (1, 1)
    made = tuning.choices()
    assert [choice.pool[4] for choice in made if choice.pool] == [True]
    assert tuning.save(tmp_path / "tuning.json") == 1
    tuning.clear()
    assert tuning.load(tmp_path / "tuning.json") == 1
    assert tuning.choices() == made


def test_a_call_that_is_mostly_padding_is_left_to_pytorch_without_timing() -> None:
    with fastconv.tune():  # fastconv's algorithms would need 12 GB
        FF.conv2d(torch.randn(2, 2, 8, 8), torch.randn(2, 2, 3, 3), padding=20_000, dilation=20_000, stride=2000)
    assert [list(choice.microseconds) for choice in tuning.choices()] == [["torch"]]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MACHINES: dict[str, Callable[[dict[str, Any]], object]] = {
    "cpu 'Z80' instead of": lambda c: c["machine"].update(cpu="Z80"),
    "cpu_level 'mmx' instead of": lambda c: c["machine"].update(cpu_level="mmx"),
    "torch '0.4' instead of": lambda c: c["machine"].update(torch="0.4"),
    "fastconv None instead of": lambda c: c["machine"].pop("fastconv"),
    "has version 99 of the format": lambda c: c.update(version=99),
}


@pytest.mark.parametrize("message", MACHINES)
def test_a_file_of_another_machine_or_version_is_refused(message: str, saved: Path) -> None:
    edit(saved, MACHINES[message])
    fastconv.tuning.clear()
    with pytest.raises(tuning.OtherMachineError, match=message) as raised:
        tuning.load(saved)
    assert str(saved) in str(raised.value)
    assert str(raised.value).endswith("Tune again.")
    assert tuning.choices() == ()
    tuning.save(saved)  # an old file may be replaced
    assert tuning.load(saved) == 0


def first_choice(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: c["choices"][-1].update(changes)


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no format": lambda c: c.pop("format"),
    "no machine": lambda c: c.update(machine=3),
    "no list": lambda c: c.update(choices={}),
    "a list of numbers": lambda c: c.update(choices=[1]),
    "no input": lambda c: c["choices"][-1].pop("input"),
    "unknown algorithm": first_choice(chosen="magic"),
    "no algorithm": first_choice(chosen="none"),
    "unknown pass": first_choice(**{"pass": "sideways"}),
    "unknown dtype": first_choice(dtype="int8"),
    "wrong sizes": first_choice(input=[1, 2, 3]),
    "huge sizes": first_choice(input=[1, 2, 3, 10**30]),
    "text": first_choice(groups="two"),
    "zero stride": first_choice(stride=[0, 1]),
    "wrong pool": first_choice(pool=[[2, 2]]),
    "wrong operands": first_choice(operands=["nhwc"]),
    "wrong share": first_choice(eighths=9),
    "wrong times": first_choice(microseconds=[1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_gives_one_clear_error_and_no_choice(damage: str, saved: Path) -> None:
    edit(saved, DAMAGED[damage])
    fastconv.tuning.clear()
    message = r"tuning.json is (damaged|not a file of fastconv.tuning.save)"
    with pytest.raises(tuning.TuningError, match=message) as raised:
        tuning.load(saved)
    assert len(str(raised.value).splitlines()) == 1
    assert tuning.choices() == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe\x00", b"[" * 100_000], ids=range(6))
def test_a_file_that_is_no_file_of_choices_is_refused_and_not_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(tuning.TuningError, match=r"not a file of fastconv.tuning.save"):
        tuning.load(path)
    with pytest.raises(tuning.TuningError, match="exists and is not a file of choices, so it is kept"):
        tuning.save(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_or_written_gives_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(tuning.TuningError, match=r"cannot read .*missing: No such file"):
        tuning.load(tmp_path / "missing")
    with pytest.raises(tuning.TuningError, match=r"cannot write .*file: No such file"):
        tuning.save(tmp_path / "missing" / "file")
    with pytest.raises(tuning.TuningError, match=r"cannot read .*: Is a directory"):
        tuning.load(tmp_path)


def test_the_environment_variable_names_a_file_that_is_loaded_at_import(
    saved: Path, tmp_path: Path, python: Python
) -> None:
    def imported(path: object, program: str = "print(len(fastconv.tuning.choices()))") -> CompletedProcess[str]:
        return python(f"import fastconv\n{program}", environment={"FASTCONV_TUNING": str(path)})

    done = imported(f" {saved} ", "print(len(fastconv.tuning.choices()), fastconv.show_config())")
    assert done.stdout.startswith("9 ")
    assert f"FASTCONV_TUNING={saved}" in done.stdout
    assert done.stderr == ""
    done = imported(tmp_path / "missing")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"FASTCONV_TUNING: cannot read {tmp_path / 'missing'}: No such file" in last
    assert last.endswith("(empty or unset: no file)")
    edit(saved, lambda c: c["machine"].update(cpu="Z80"))
    done = imported(saved)
    assert done.stdout.strip() == "0"
    assert "is for cpu 'Z80' instead of" in done.stderr
    assert "(FASTCONV_TUNING is ignored)" in done.stderr
