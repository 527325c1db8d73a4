"""Run inference in several threads while weights change and the cache evicts entries. `make tsan` runs this.

Every result is compared with PyTorch's. FASTCONV_CACHE_MB=1 is too small for all weights.
"""

from __future__ import annotations

import sys
import threading

import torch

import fastconv
import fastconv.functional as FF

THREADS = 4
SHAPES = [
    ((1, 16, 20, 20), (24, 16, 3, 3)),  # Winograd
    ((1, 64, 5, 5), (128, 64, 3, 3)),  # direct
    ((1, 8, 9, 9), (8, 1, 3, 3)),  # depthwise
    ((1, 128, 7, 7), (128, 128, 3, 3)),  # packed weight and copy are larger than the cache
]


def right(x: torch.Tensor, w: torch.Tensor) -> bool:
    groups = x.shape[1] // w.shape[1]
    expected = torch.nn.functional.conv2d(x, w, groups=groups)
    return torch.allclose(FF.conv2d(x, w, groups=groups), expected, rtol=1e-3, atol=1e-3)


def infer(
    shared: list[tuple[torch.Tensor, torch.Tensor]], model: torch.nn.Module, wrong: list[str], rounds: int
) -> None:
    own = [(torch.randn(size), torch.randn(weight)) for size, weight in SHAPES]
    image = torch.randn(1, 1, 28, 28)
    before = model(image)
    for round_ in range(rounds):
        for x, w in shared + own:
            if not all(right(x, w) for _ in range(3)):
                wrong.append(f"round {round_}, weight {tuple(w.shape)}")
        if not torch.equal(model(image), before):
            wrong.append(f"round {round_}, the model")
        for _, w in own:  # change one element in place. The cache's hint may not sample it.
            w.view(-1)[round_ % w.numel()] *= -1


def main() -> None:
    torch.manual_seed(0)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    shared = [(torch.randn(size), torch.randn(weight)) for size, weight in SHAPES]
    models = [fastconv.models.MnistCNN().eval() for _ in range(2)]
    wrong: list[str] = []

    def work(index: int) -> None:
        with torch.inference_mode():
            infer(shared, models[index % 2], wrong, rounds)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = fastconv._C.packed_weights()
    print(f"{THREADS} threads, {len(wrong)} wrong results, {state['hits']} hits, {state['bytes']} bytes kept")
    sys.exit(bool(wrong) or state["hits"] == 0)


if __name__ == "__main__":
    main()
