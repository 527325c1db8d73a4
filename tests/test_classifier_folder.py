"""The data set ``folder``: images in one sub-folder per class. The commands can train on it and evaluate it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from fastconv.classifier import checkpoint, data
from fastconv.classifier.cli.main import main
from fastconv.classifier.data import DataError

Output = pytest.CaptureFixture[str]
COLOURS = {"blue": (0, 0, 255), "green": (0, 160, 0), "red$": (250, 20, 30)}


def write_images(folder: Path, count: int = 10, mode: str = "RGB", ending: str = "png") -> None:
    """Write a sub-folder per colour with ``count`` images that differ in size and slightly in brightness."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", (10 + index, 21 - index), tuple(max(0, part - index) for part in colour))
            image.convert(mode).save(folder / name / f"{index:02}.{ending}")


def test_every_fifth_image_of_each_class_is_a_test_image(tmp_path: Path) -> None:
    write_images(tmp_path, count=12)
    found = data.load("folder", tmp_path)
    assert (found.name, found.class_names, found.shape) == (tmp_path.name, ("blue", "green", "red$"), (3, 32, 32))
    assert found.train_images.dtype == torch.float32
    assert found.train_labels.bincount().tolist() == [10, 10, 10]
    assert found.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    expected = [[0, 0, 251], [0, 156, 0], [246, 16, 26], [0, 0, 246], [0, 151, 0], [241, 11, 21]]
    assert found.test_images.mul(255).round()[:, :, 5, 7].tolist() == expected


def test_the_folders_train_and_test_are_used_as_given(tmp_path: Path) -> None:
    write_images(tmp_path / "train", count=3, ending="jpg")
    write_images(tmp_path / "test", count=1, ending="webp")
    found = data.load("folder", tmp_path, size=9)
    assert found.train_images.shape == (9, 3, 9, 9)
    assert found.test_labels.tolist() == [0, 1, 2]


def test_classes_of_any_sizes_are_mixed_evenly(tmp_path: Path) -> None:
    write_images(tmp_path / "train", count=20)
    write_images(tmp_path / "test", count=1)
    for path in sorted((tmp_path / "train" / "blue").iterdir())[5:]:
        path.unlink()
    labels = data.load("folder", tmp_path).train_labels
    assert labels.bincount().tolist() == [5, 20, 20]
    for stretch in labels.split(9):
        assert stretch.bincount().tolist() == [1, 4, 4]


def test_the_images_are_grey_if_every_file_is(tmp_path: Path) -> None:
    write_images(tmp_path, count=5, mode="L")
    assert data.load("folder", tmp_path).shape == (1, 32, 32)
    assert data.load("folder", tmp_path, channels=3).shape == (3, 32, 32)
    values = np.full((8, 8), 51 * 257, np.uint16)
    Image.fromarray(values).save(tmp_path / "blue" / "04.png")
    assert data.load("folder", tmp_path).test_images[0].mul(255).round().unique().tolist() == [51]
    Image.new("RGB", (5, 5), "red").save(tmp_path / "green" / "04.png")
    found = data.load("folder", tmp_path)
    assert found.shape == (3, 32, 32)
    assert found.test_images[0].mul(255).round().unique().tolist() == [51]  # a 16-bit grey image among coloured ones


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    write_images(tmp_path, count=5)
    before = data.load("folder", tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "blue" / "notes.txt").write_text("not an image")
    (tmp_path / "blue" / "._00.png").write_text("not an image")
    (tmp_path / "green" / "03.png").rename(tmp_path / "green" / "03.PNG")
    (tmp_path / "green" / "more").mkdir()
    (tmp_path / "green" / "04.png").rename(tmp_path / "green" / "more" / "04.png")
    after = data.load("folder", tmp_path)
    assert torch.equal(after.train_images, before.train_images)
    assert torch.equal(after.test_images, before.test_images)


def test_the_error_says_why_a_folder_cannot_be_used(tmp_path: Path) -> None:
    def complaint(**options: int) -> str:
        with pytest.raises(DataError) as caught:
            data.load("folder", tmp_path / "images", **options)
        return str(caught.value)

    images = tmp_path / "images"
    assert complaint() == f"{images} is not a folder"
    images.mkdir()
    assert "has no classes" in complaint()
    (images / "cats").mkdir()
    assert "only one class, cats" in complaint()
    write_images(images, count=4)
    assert complaint() == f"{images / 'cats'} has no images"
    (images / "cats").rmdir()
    assert complaint().startswith(f"{images / 'blue'} has 4 images, but needs 5")
    assert "between 1 and 1024, not 0" in complaint(size=0)
    assert "between 1 and 1024, not 1025" in complaint(size=1025)
    write_images(images / "train", count=1)
    write_images(images / "test", count=1)
    (images / "test" / "red$").rename(images / "test" / "rot")
    assert "different classes: only one of them has red$, rot" in complaint()
    (images / "test").rename(images / "val")
    assert "has train, but not test: rename the folder of validation images to test" in complaint()


def damaged_avif(content: bytes) -> bytes:
    """A truncated AVIF file, for which Pillow raises RuntimeError."""
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "avif")
    return file.getvalue()[:-20]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"text", lambda content: content[:60], damaged_avif])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    write_images(tmp_path, count=5)
    path = tmp_path / "green" / "02.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"green/02\.png"):
        data.load("folder", tmp_path)


def test_an_image_size_for_another_data_set_and_a_missing_data_dir_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="use size with the data set folder only"):
        data.load("mnist5k", size=28)
    with pytest.raises(DataError, match="needs data_dir"):
        data.load("folder")


def test_the_commands_train_evaluate_predict_and_plot_a_folder_of_images(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), count=20)
    write_images(Path("grey"), count=5, mode="L")
    train = ["train", "--dataset", "folder", "--data-dir", "images", "--image-size", "24", "--output", "run"]
    train += ["--model", "conv8, pool, dense16", "--epochs", "8", "--batch-size", "8", "--lr", "0.01"]
    assert main([*train, "--augment", "flip"]) == 0
    assert "conv8, pool, dense16 on images: 39 training images, 9 validation images" in capsys.readouterr().out
    saved = checkpoint.load(Path("run/checkpoint.pt"))
    assert (saved.shape, saved.class_names) == ((3, 24, 24), tuple(COLOURS))

    Path("elsewhere").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir("elsewhere")
        assert main(["evaluate", "../run/checkpoint.pt"]) == 0
    assert capsys.readouterr().out.startswith("test accuracy 100.00% (12 of 12), loss ")
    assert main([*train, "--data-dir", "grey"]) == 2
    assert "run has another run: choose another --output" in capsys.readouterr().err
    assert main(["evaluate", "run/checkpoint.pt", "--data-dir", "grey"]) == 0  # grey images are made coloured
    assert " of 3), loss " in capsys.readouterr().out

    assert main(["predict", "run/checkpoint.pt", "images/green/07.png", "1"]) == 0
    _, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows] == [("images/green/07.png", "green", ""), ("1", "green", "green")]

    assert main(["plot", "run/checkpoint.pt", "--count", "4"]) == 0
    with Image.open("run/predictions.png") as picture:
        assert picture.width > 800

    capsys.readouterr()
    Path("grey/red$").rename("grey/rot")
    assert main(["evaluate", "run/checkpoint.pt", "--data-dir", "grey"]) == 2
    assert "the classes of grey differ from the checkpoint's: rot in place of red$" in capsys.readouterr().err
    assert main(["evaluate", "run/checkpoint.pt", "--dataset", "mnist5k"]) == 2
    assert (
        "images of 3 x 24 x 24 in 3 classes, but mnist5k has images of 1 x 28 x 28 in 10 classes"
        in capsys.readouterr().err
    )
