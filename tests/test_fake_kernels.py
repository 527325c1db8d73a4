"""The fake kernels, which meta tensors use, refuse what the operators refuse, with the same text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

OPS = torch.ops.fastconv
X, W, ONE, NONE = (2, 4, 5, 6), (6, 4, 3, 3), [1, 1], [0, 0]
#: Each operator with arguments that are wrong. A size becomes a tensor.
WRONG: dict[str, tuple[Any, ...]] = {
    "channels": (OPS.conv2d, X, (6, 3, 3, 3), None, ONE, NONE, ONE, 1),
    "groups": (OPS.conv2d, X, (6, 1, 3, 3), None, ONE, NONE, ONE, 4),
    "more groups than channels": (OPS.conv2d, X, W, None, ONE, NONE, ONE, 8),
    "bias": (OPS.conv2d, X, W, (5,), ONE, NONE, ONE, 1),
    "bias of two dimensions": (OPS.conv2d, X, W, (6, 1), ONE, NONE, ONE, 1),
    "large kernel": (OPS.conv2d, X, (6, 4, 9, 3), None, ONE, NONE, ONE, 1),
    "empty kernel": (OPS.conv2d, X, (6, 4, 0, 3), None, ONE, NONE, ONE, 1),
    "empty image": (OPS.conv2d, (2, 4, 0, 6), W, None, ONE, [2, 2], ONE, 1),
    "stride": (OPS.conv2d, X, W, None, [0, 1], NONE, ONE, 1),
    "one padding": (OPS.conv2d, X, W, None, ONE, [0], ONE, 1),
    "large dilation": (OPS.conv2d, X, W, None, ONE, NONE, [2**41, 1], 1),
    "images": (OPS.conv2d, X[1:], W, None, ONE, NONE, ONE, 1),
    "negative size": (OPS.conv2d_backward_data, (2, 6, 3, 4), W, [2, 4, -5, 6], ONE, NONE, ONE, 1, False),
    "gradient": (OPS.conv2d_backward_data, (2, 6, 9, 4), W, list(X), ONE, NONE, ONE, 1, False),
    "kernel size": (OPS.conv2d_backward_weight, (2, 6, 3, 4), X, [3], ONE, NONE, ONE, 1, False),
    "no groups": (OPS.conv2d_backward_weight, (2, 6, 3, 4), X, [3, 3], ONE, NONE, ONE, 0, False),
    "pool": (OPS.max_pool2d, X, [9, 9], ONE, NONE, ONE, False),
    "pool stride": (OPS.max_pool2d, X, [2, 2], [0, 1], NONE, ONE, False),
    "pool padding": (OPS.max_pool2d, X, [3, 3], ONE, [2, 2], ONE, False),
    "pool padding above half of the kernel": (OPS.max_pool2d, X, [3, 3], ONE, [2, 2], [2, 2], False),
    "pool dilation": (OPS.max_pool2d, X, [2, 2], ONE, NONE, [0, 1], False),
    "large pool number": (OPS.max_pool2d, X, [2**32, 2], ONE, NONE, ONE, False),
    "pool of an empty image": (OPS.max_pool2d, (2, 4, 0, 6), [2, 2], ONE, NONE, ONE, False),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_has_the_same_error_on_meta_tensors(name: str) -> None:
    operator, *arguments = WRONG[name]
    errors = []
    for device in ("cpu", "meta"):
        tensors = [torch.zeros(a, device=device) if isinstance(a, tuple) else a for a in arguments]
        with pytest.raises(RuntimeError) as raised:
            operator(*tensors)
        errors.append(str(raised.value).splitlines()[0])
    assert errors[0] == errors[1]


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_symbolic_sizes_give_the_same_results(ceil_mode: bool) -> None:
    def blocks(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = OPS.conv2d(x, w, None, [2, 1], [1, 0], ONE, 1)
        return OPS.max_pool2d(y, [2, 2], [2, 2], NONE, ONE, ceil_mode)[0]

    compiled = torch.compile(blocks, backend="aot_eager", dynamic=True)
    for size in (9, 12, 15):
        x, w = torch.randn(2, 3, size, size + 1), torch.randn(4, 3, 3, 3)
        torch.testing.assert_close(compiled(x, w), blocks(x, w), rtol=0, atol=0)
