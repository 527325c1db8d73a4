"""fastconv.optim gives the parameters and states of torch.optim, whether fastconv or PyTorch computes a step."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forked import Python
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastconv import optim

PAIRS = [(optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]
Settings = dict[str, Any]

SETTINGS: dict[str, Settings] = {
    "plain": {},
    "lr and betas": {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3},
    "integer lr": {"lr": 1},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "amsgrad": {"amsgrad": True},
    "not fused": {"fused": False},
    "foreach": {"fused": None, "foreach": True},
    "lr as a tensor": {"lr": torch.tensor(0.1)},
}


def network(dtype: torch.dtype = torch.float32, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = next(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(3, first.shape[1], 8, 8, generator=generator).to(first.dtype)).square().mean().backward()
        optimizer.step()


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert that nested dictionaries and lists of tensors and numbers are bitwise equal."""
    assert type(ours) is type(theirs) or isinstance(ours, Tensor)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


def check(
    our_kind: Any, their_kind: Any, settings: Settings, run: Callable[[nn.Module, Any], Any] = train, **model: Any
) -> tuple[Any, Any]:
    ours, theirs = network(**model), network(**model)
    our_optimizer = our_kind(ours.parameters(), **settings)
    their_optimizer = their_kind(theirs.parameters(), **{"fused": True, **settings})
    run(ours, our_optimizer)
    run(theirs, their_optimizer)
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(our_optimizer.state_dict(), their_optimizer.state_dict())
    return our_optimizer, their_optimizer


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("our_kind", "their_kind"), PAIRS)
def test_training_gives_pytorchs_parameters_and_states(our_kind: Any, their_kind: Any, settings: Settings) -> None:
    check(our_kind, their_kind, settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_give_pytorchs_results(dtype: torch.dtype) -> None:
    check(*PAIRS[0], {}, dtype=dtype)


@pytest.mark.parametrize("kinds", PAIRS)
def test_channels_last_parameters_give_pytorchs_results(kinds: tuple[Any, Any]) -> None:
    """The step passes views of channels_last parameters to the kernel."""

    def run(model: nn.Module, optimizer: Any) -> None:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weight = model.get_parameter("0.weight")
        assert not weight.is_contiguous()
        train(model, optimizer)
        assert weight.grad is not None
        weight.grad = weight.grad.contiguous()  # read as if channels_last, as by PyTorch
        optimizer.step()

    check(*kinds, {}, run, channels=3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one element for each step that PyTorch's code computes."""
    calls: list[int] = []
    torch_step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: calls.append(1) or torch_step(self))
    return calls


def test_steps_skip_pytorchs_code_except_with_hooks(calls: list[int]) -> None:
    """If no step skipped PyTorch's code, the tests of this file would compare PyTorch with itself."""
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, steps=5)
    assert len(calls) == 1  # the first step creates the state
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    train(model, optimizer, steps=2)
    assert len(calls) == 3
    handle.remove()
    train(model, optimizer, steps=2)
    assert len(calls) == 3


def test_missing_and_zero_gradients_give_pytorchs_results() -> None:
    def run(model: nn.Module, optimizer: Any) -> None:
        train(model, optimizer)
        for steps in range(3):
            optimizer.zero_grad(set_to_none=steps == 1)
            model[3](torch.ones(1, 144)).sum().backward()  # the convolution is not used
            optimizer.step()
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()

    check(*PAIRS[0], {}, run)


def test_parameters_may_be_added_later() -> None:
    def run(model: nn.Module, optimizer: Any) -> None:
        model[0].requires_grad_(False)
        train(model, optimizer)
        model[0].requires_grad_(True)
        train(model, optimizer)
        extra = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in extra.parameters():
                parameter.fill_(0.5)
        optimizer.add_param_group({"params": list(extra.parameters()), "lr": 0.01})
        for _ in range(3):
            optimizer.zero_grad()
            (extra(torch.ones(1, 2)).sum() + model(torch.ones(1, 1, 8, 8)).sum()).backward()
            optimizer.step()

    check(*PAIRS[0], {}, run)


@pytest.mark.parametrize("groups", [1, 2])
def test_parameters_of_two_dtypes_give_pytorchs_results(groups: int, calls: list[int]) -> None:
    """PyTorch's code computes the steps of a group of two dtypes. GPUs need one call of the kernel per dtype."""

    def trained(kind: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        layers = nn.Linear(3, 2), nn.Linear(3, 2).double()
        parameters = [list(layer.parameters()) for layer in layers]
        if groups == 1:
            optimizer = kind(parameters[0] + parameters[1], fused=True)
        else:
            optimizer = kind([{"params": parameters[0], "lr": 0.1}, {"params": parameters[1]}], fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            sum(layer(torch.ones(1, 3).to(layer.weight.dtype)).sum() for layer in layers).backward()
            optimizer.step()
        return [layer.state_dict() for layer in layers], optimizer.state_dict()

    ours = trained(optim.Adam)
    assert len(calls) == (3 if groups == 1 else 1)
    assert_same(ours, trained(torch.optim.Adam))


@pytest.mark.parametrize("first", [0, 1])
def test_state_can_be_loaded_by_the_other_library(first: int) -> None:
    """Training continues as if one optimizer had computed all steps."""
    kinds = [PAIRS[0][first], PAIRS[0][1 - first]]
    model, straight = network(), network()
    optimizer = kinds[0](model.parameters(), fused=True)
    train(model, optimizer)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = kinds[1](model.parameters(), fused=True)
    other.load_state_dict(torch.load(buffer))
    train(model, other, seed=2)

    torch_optimizer = torch.optim.Adam(straight.parameters(), fused=True)
    train(straight, torch_optimizer)
    train(straight, torch_optimizer, seed=2)
    assert_same(model.state_dict(), straight.state_dict())
    assert_same(other.state_dict(), torch_optimizer.state_dict())


def test_state_may_be_replaced_or_cleared() -> None:
    def run(model: nn.Module, optimizer: Any) -> None:
        train(model, optimizer)
        for parameter in model.parameters():
            optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        train(model, optimizer)
        optimizer.state.clear()
        train(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.5
        train(model, optimizer)

    check(*PAIRS[0], {}, run)


def test_hooks_closures_and_schedules_work() -> None:
    seen: list[tuple[str, int]] = []

    def run(model: nn.Module, optimizer: Any) -> None:
        seen.clear()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        for _ in range(4):
            train(model, optimizer, steps=1)
            scheduler.step()
        handles = [
            optimizer.register_step_pre_hook(lambda _, args, kwargs: seen.append(("before", len(args)))),
            optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append(("after", len(args)))),
        ]
        train(model, optimizer)
        assert seen == [("before", 1), ("after", 1)] * 4
        for handle in handles:
            handle.remove()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(torch.ones(1, 1, 8, 8)).square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure) for _ in range(3)]
        assert losses[0] > losses[2]

    check(*PAIRS[0], {"lr": 0.01}, run)


def test_global_hooks_and_the_profiler_see_each_step() -> None:
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer)
    seen = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    train(model, optimizer, steps=2)
    handle.remove()
    assert len(seen) == 2
    with torch.profiler.profile(acc_events=True) as profile:
        train(model, optimizer, steps=2)
    names = {event.key: event.count for event in profile.key_averages()}
    assert names["Optimizer.step#Adam.step"] == names["Optimizer.zero_grad#Adam.zero_grad"] == 2


def test_a_gradient_scaler_gives_pytorchs_results() -> None:
    def run(model: nn.Module, optimizer: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for value in (1.0, 2.0, float("inf"), 3.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 1, 8, 8), value)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert all(parameter.isfinite().all() for parameter in model.parameters())

    check(*PAIRS[0], {}, run)


def test_copies_and_subclasses_give_the_same_results() -> None:
    class Mine(optim.Adam):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            return super().step(closure)

    ours, _ = check(Mine, torch.optim.Adam, {})
    assert ours.steps == 4
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer)
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    train(model, optimizer)
    train(model2, optimizer2)
    assert_same(model.state_dict(), model2.state_dict())


def test_errors_are_pytorchs() -> None:
    parameter = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optim.Adam([parameter], lr=-1)
    with pytest.raises(RuntimeError, match="cannot be `True` together"):
        optim.Adam([parameter], foreach=True)
    optimizer = optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("pair", PAIRS)
def test_fake_tensors_can_be_optimized(pair: tuple[Any, Any]) -> None:
    for optimizer in pair:
        with FakeTensorMode():
            parameter = nn.Parameter(torch.randn(3))
            steps = optimizer([parameter], fused=True)
            parameter.grad = torch.randn(3)
            steps.step()
            steps.step()
        steps.step()
        assert steps.state[parameter]["step"].shape == ()


def test_an_import_in_fake_tensor_mode_creates_no_fake_tensors(python: Python) -> None:
    program = """
import torch
from torch._subclasses import FakeTensorMode
with FakeTensorMode():
    import fastconv
from fastconv.optim import Adam
parameter = torch.nn.Parameter(torch.ones(3))
adam = Adam([parameter])
parameter.grad = torch.ones(3)
for _ in range(3):
    adam.step()
assert adam.state[parameter]["step"].item() == 3
"""
    done = python(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_signatures_are_pytorchs_except_for_fused(ours: type, theirs: type) -> None:
    expected = {name: (p.default, p.kind) for name, p in inspect.signature(theirs).parameters.items()}
    expected["fused"] = (True, inspect.Parameter.KEYWORD_ONLY)
    assert {name: (p.default, p.kind) for name, p in inspect.signature(ours).parameters.items()} == expected
