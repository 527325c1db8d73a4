"""fastconv.freeze of a model that cannot be recorded: its stages and blocks are recorded one by one."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_freeze import Residual, with_statistics
from torch import Tensor, nn

import fastconv
from fastconv._frozen.layers import FrozenChain
from fastconv._frozen.parts import frozen_parts


@pytest.fixture(autouse=True, params=[False, True], ids=["parts", "calls"])
def record_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of calls, which may compute the whole model, give the same results as the parts."""
    monkeypatch.setattr(fastconv, "freeze", functools.partial(fastconv.freeze, record_calls=request.param))


class Model(nn.Module):
    """Two stages below a ``forward`` that torch.fx cannot record, because of the check of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage1 = nn.Sequential(Residual(8, nn.ReLU()), Residual(8, nn.ReLU6()))
        self.stage2 = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor, name: str | None = None) -> dict[str, Tensor]:
        if x.shape[1] != 3:
            raise ValueError("expected 3 channels")
        return {"out": self.stage2(self.stage1(self.stem(x)))}


def parts(model: nn.Module) -> dict[str, list[int]]:
    """The names of the recorded parts, and the numbers of steps of their chains."""
    return {
        name.removeprefix("model."): [len(m.steps) for m in part.frozen.modules() if isinstance(m, FrozenChain)]
        for name, module in model.named_modules()
        if (part := vars(module).get("forward")) is not None
    }


def pair(model: nn.Module) -> tuple[Any, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = with_statistics(model)
    return fastconv.freeze(model), model, torch.randn(2, 3, 8, 8)


def assert_equal(frozen: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    torch.testing.assert_close(frozen(*args, **kwargs), model(*args, **kwargs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_stages_become_chains(context: Callable[[], Any]) -> None:
    frozen, model, x = pair(Model())
    assert parts(frozen) == {"stage1": [4], "stage2": [2]}
    with context():
        assert_equal(frozen, model, x)
        assert_equal(frozen, model, x.contiguous(memory_format=torch.channels_last), name="image")
    with pytest.raises(ValueError, match="expected 3 channels"):
        frozen(x[:, :2])


def test_the_modules_keep_their_classes_layers_and_values() -> None:
    frozen, model, x = pair(Model())
    assert isinstance(frozen.model.stage1[0], Residual)
    assert frozen.model.stage1[0].conv1.kernel_size == (3, 3)
    assert [name for name, _ in frozen.model.named_modules()] == [name for name, _ in model.named_modules()]
    torch.testing.assert_close(dict(frozen.model.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    y = frozen.model.stem(x)
    for mine, theirs in zip(frozen.model.stage1, model.stage1, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(mine(y), theirs(y), rtol=1e-4, atol=1e-5)


def test_the_model_itself_does_not_change() -> None:
    _, model, _ = pair(Model())
    assert parts(model) == {}
    assert all(type(m) is not fastconv.nn.Conv2d for m in model.modules())


class Branching(Residual):
    """Another branch for None, and for a tuple."""

    def forward(self, x: Any) -> Any:
        if x is None:
            return None
        return super().forward(x[0] if isinstance(x, tuple) else x)


class Passing(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 8, 1), part

    def forward(self, x: Tensor, change: Callable[[Tensor], Any]) -> Any:
        x = self.stem(x) if x.shape[0] else x
        return self.part(change(x))


@pytest.mark.parametrize("change", [lambda t: None, lambda t: t, lambda t: (t, t)], ids=["None", "tensor", "tuple"])
def test_other_arguments_take_their_own_branch(change: Callable[[Tensor], Any]) -> None:
    frozen, model, x = pair(Passing(Branching(8, nn.ReLU())))
    assert_equal(frozen, model, x, change)


class Keyword(Passing):
    def forward(self, x: Tensor, *_: Any) -> Any:
        return self.part(x=self.stem(x))


def test_an_argument_given_by_its_name() -> None:
    frozen, model, x = pair(Keyword(Residual(8, nn.ReLU())))
    assert parts(frozen) == {"part": [2]}
    assert_equal(frozen, model, x)


class Counting(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


class Noisy(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(())


class Two(Residual):
    def forward(self, x: Tensor, y: Any = None) -> Tensor:
        return super().forward(x if y is None else x + y)


@pytest.mark.parametrize("part", [Counting, Noisy, Two])
def test_a_part_that_cannot_be_recorded(part: type[Residual]) -> None:
    frozen, model, x = pair(Passing(part(8, nn.ReLU())))
    assert parts(frozen) == {}
    for _ in range(3):
        torch.manual_seed(1)
        found = frozen(x, lambda t: t)
        torch.manual_seed(1)
        torch.testing.assert_close(found, model(x, lambda t: t), rtol=1e-4, atol=1e-5)


def test_hooks_run() -> None:
    torch.manual_seed(0)
    model = with_statistics(Model())
    seen: list[str] = []
    for name in ("stage1", "stage2"):
        model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.append(name))
    model.stage1[1].register_forward_hook(lambda m, args, out: out + 1)  # type: ignore[index, operator]
    frozen, x = fastconv.freeze(model), torch.randn(2, 3, 8, 8)
    assert parts(frozen) == {"stage1.0": [2], "stage2.0": [1]}
    assert_equal(frozen, model, x)
    assert seen == ["stage1", "stage2"] * 2
    later, plain, _ = pair(Model())
    for each in (later.model, plain):
        each.stage2.register_forward_hook(lambda m, args, out: out * 2)
    assert parts(later) == {"stage1": [4], "stage2": [2]}
    assert_equal(later, plain, x)


def test_a_shared_part_is_recorded_once() -> None:
    model = Model()
    model.stage1.append(model.stage1[0])
    model.again = model.stage1  # type: ignore[assignment]
    frozen, model, x = pair(model)  # type: ignore[assignment]
    assert parts(frozen) == {"stage1": [6], "stage2": [2]}
    assert frozen.model.again is frozen.model.stage1
    assert_equal(frozen, model, x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(copied: Callable[[Any], Any]) -> None:
    frozen, model, x = pair(Model())
    frozen(x)
    again = copied(frozen)
    assert parts(again) == parts(frozen)
    own = vars(again.model.stage1)["forward"]
    assert own is not vars(frozen.model.stage1)["forward"]
    assert own.module is again.model.stage1
    assert own.is_unchanged()
    assert_equal(again, model, x)
    scale_weight(again.model)
    scale_weight(model)
    assert_equal(again, model, x)
    twice = copied(again)
    assert not vars(twice.model.stage1)["forward"].is_unchanged()
    assert_equal(twice, model, x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_the_parent_of_a_copy_changes_it_before_its_first_call(copied: Callable[[Any], Any]) -> None:
    for tell in (set_number, set_tensor, set_layer, fill_buffer, change_list):
        frozen, model, _ = pair(Telling(tell))
        assert_equal(copied(frozen), model, torch.randn(3, 3, 8, 8))


def test_a_part_in_training_mode_runs_its_own_forward() -> None:
    frozen, model, x = pair(Model())
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()
    for each in (frozen.model, model):
        each.stage1.train()
    assert_equal(frozen, model, x)


def test_modes_around_a_call() -> None:
    frozen, model, x = pair(Model())
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(x)["out"].dtype == torch.bfloat16
        torch.testing.assert_close(frozen(x)["out"], model(x)["out"], rtol=0.1, atol=0.1)
    found, expected = (torch.func.vmap(lambda t, m=m: m(t)["out"])(x[None]) for m in (frozen, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    results = []
    for each in (frozen, model):
        t = x.clone().requires_grad_()
        each(t)["out"].square().sum().backward()
        results.append(t.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def set_number(parent: Any, x: Tensor) -> None:
    parent.part.scale = float(x.shape[0])


def set_tensor(parent: Any, x: Tensor) -> None:
    parent.part.skip = x


def set_layer(parent: Any, x: Tensor) -> None:
    parent.part.act = nn.Identity() if x.shape[0] > 2 else nn.ReLU()


def fill_buffer(parent: Any, x: Tensor) -> None:
    parent.part.gain.fill_(x.shape[0])


def change_list(parent: Any, x: Tensor) -> None:
    parent.part.sizes[0] = x.shape[0]


class Told(Residual):
    """A block whose result depends on what its parent sets."""

    scale: float
    gain: Tensor

    def __init__(self) -> None:
        super().__init__(8, nn.ReLU())
        self.scale, self.skip, self.sizes = 1.0, None, [1]
        self.register_buffer("gain", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * self.scale * self.gain * self.sizes[0]
        return y if self.skip is None else y + self.skip


class Telling(Passing):
    def __init__(self, tell: Callable[[Any, Tensor], None]) -> None:
        super().__init__(Told())
        self.tell = tell

    def forward(self, x: Tensor, *_: Any) -> Any:
        x = self.stem(x)
        self.tell(self, x)
        return self.part(x)


@pytest.mark.parametrize("tell", [set_number, set_tensor, set_layer, fill_buffer, change_list])
def test_what_the_parent_changes_has_effect(tell: Callable[[Any, Tensor], None]) -> None:
    frozen, model, _ = pair(Telling(tell))
    assert parts(frozen) == {"part": [2]}
    for N in (1, 3, 2):
        x = torch.randn(N, 3, 8, 8)
        assert_equal(frozen, model, x)
        assert_equal(frozen, model, x)


def add_hook(model: Any) -> None:
    model.stage1[0].bn1.register_forward_hook(lambda m, args, out: out * 2)


def replace_layer(model: Any) -> None:
    model.stage1[0].act = nn.SiLU()


def train_layer(model: Any) -> None:
    model.stage1[1].bn2.train()


def remove_layer(model: Any) -> None:
    del model.stage2[0][2]


def scale_weight(model: Any) -> None:
    with torch.no_grad():
        model.stage1[0].bn1.weight.mul_(2)


@pytest.mark.parametrize("change", [add_hook, replace_layer, train_layer, remove_layer, scale_weight])
def test_a_later_change_of_a_part_has_effect(change: Callable[[Any], None]) -> None:
    frozen, model, x = pair(Model())
    frozen(x)
    change(frozen.model)
    change(model)
    assert_equal(frozen, model, x)


def test_a_change_of_the_dtype() -> None:
    frozen, model, x = pair(Model())
    assert_equal(frozen.double(), model.double(), x.double())
    part = next(frozen_parts(frozen))
    assert part.is_unchanged()
    assert part.frozen(torch.randn(1, 8, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_parts_whose_arguments_are_not_known() -> None:
    model = Passing(nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())), nn.Conv2d(8, 8, 1)))
    model.other = Residual(8, nn.ReLU())
    model.other.forward = torch.relu  # type: ignore[method-assign]
    frozen, model, x = pair(model)  # type: ignore[assignment]
    assert_equal(frozen, model, x, lambda t: t)


def test_compile_and_export() -> None:
    frozen, model, x = pair(Model())
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(frozen, backend="eager")(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(frozen, (x,))
        torch.testing.assert_close(exported.module()(x), expected, rtol=1e-4, atol=1e-5)
