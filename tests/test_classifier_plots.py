"""The plots of a run and its report."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text
from PIL import Image, ImageShow
from torch import Tensor

from fastconv.builder import build_cnn
from fastconv.classifier import evaluation, plots, report, summary
from fastconv.classifier.cli.main import main
from fastconv.classifier.data import DataSet
from fastconv.classifier.files import OutputError
from fastconv.classifier.history import EpochResult, History
from fastconv.classifier.networks import build_model
from fastconv.classifier.plots.style import drawn, drawn_names, percent
from fastconv.classifier.runs import RunFolder

Output = pytest.CaptureFixture[str]
BLUE, RED, ORANGE = (31, 119, 180), (214, 39, 40), (255, 127, 14)
LONG_NAMES = [f"a class <of> the name no. {index} & $x^2$ \n 漢字" for index in range(100)]
PLOTS = ["training_curves", "predictions", "confusion_matrix", "worst_mistakes", "filters", "feature_maps"]


def pixels(figure: Figure) -> np.ndarray[Any, Any]:
    """The pixels (H, W, 3) of a picture, whose PNG must have a reasonable size."""
    with Image.open(io.BytesIO(plots.png(figure))) as picture:
        assert picture.format == "PNG"
        assert 300 <= picture.width <= 3000
        assert 100 <= picture.height <= 4000
        return np.asarray(picture.convert("RGB"))


def colours(figure: Figure) -> set[tuple[int, ...]]:
    packed = np.unique(pixels(figure).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))
    return {(colour >> 16, colour >> 8 & 255, colour & 255) for colour in packed.tolist()}


def texts(figure: Any) -> list[str]:
    """All texts of a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def history(epochs: int, validated: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 0.1 / epoch,
            "val_loss": 0.9 / epoch if validated else None,
            "val_accuracy": 0.9 if validated else None,
            "seconds": 2.0,
            "images_per_second": 1000.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def predictions(count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Labels and probabilities. Half of the predictions are right."""
    probabilities = (3 * torch.randn(count, classes)).softmax(1)
    labels = probabilities.argmax(1)
    labels[::2] = (labels[::2] + 1) % classes
    return labels, probabilities


@pytest.mark.parametrize("epochs", [1, 2, 15])
def test_training_curves_have_a_second_colour_for_validation(epochs: int) -> None:
    assert {BLUE, ORANGE} <= colours(plots.training_curves(history(epochs)))
    alone = colours(plots.training_curves(history(epochs, validated=False)))
    assert BLUE in alone
    assert ORANGE not in alone


def test_training_curves_need_an_epoch() -> None:
    with pytest.raises(ValueError, match="no epoch"):
        plots.training_curves([])


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (1, 10), (3, 10), (3, 100)])
def test_prediction_grid_accepts_grey_and_coloured_images_and_names_of_any_length(channels: int, classes: int) -> None:
    labels, probabilities = predictions(4, classes)
    found = colours(plots.prediction_grid(torch.rand(4, channels, 32, 32), labels, probabilities, 7, "a $ title",
                                          LONG_NAMES[:classes]))  # fmt: skip
    assert {BLUE, RED} <= found


def test_confusion_counts_has_a_row_per_label_and_a_column_per_prediction() -> None:
    labels, predicted = torch.randint(0, 5, (200,)), torch.randint(0, 5, (200,))
    counts = plots.confusion_counts(labels, predicted, 6)
    assert counts.shape == (6, 6)
    assert counts.sum() == 200
    assert counts[3, 1] == ((labels == 3) & (predicted == 1)).sum()


@pytest.mark.parametrize("classes", [2, 10, 20, 100])
def test_confusion_matrix_draws_a_cell_with_all_images_of_its_row_dark(classes: int) -> None:
    labels = torch.arange(classes - 1).repeat(9)  # no image of the last class
    picture = plots.confusion_matrix(labels, labels, LONG_NAMES[:classes])
    assert (8, 48, 107) in colours(picture)  # the darkest colour of the colour map Blues


def test_worst_mistakes_begin_with_the_largest_loss() -> None:
    images = torch.stack([torch.full((1, 8, 8), grey) for grey in (0.0, 0.25, 0.5, 0.75)])
    probabilities = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])
    picture = pixels(plots.worst_mistakes(images, torch.tensor([0, 1, 1, 1]), probabilities, ["no", "yes"]))
    row = picture[picture.shape[0] // 2, :, 0].tolist()
    order = [round(1 - grey / 255, 2) for grey in dict.fromkeys(row) if row.count(grey) > 50 and grey != 255]
    assert order == pytest.approx([0.5, 0.75, 0.25], abs=0.15)  # gray_r draws a value as a grey of about 1 - value


def test_worst_mistakes_draws_a_note_if_there_are_none() -> None:
    probabilities = torch.eye(10)
    found = colours(plots.worst_mistakes(torch.rand(10, 3, 8, 8), torch.arange(10), probabilities))
    assert RED not in found
    assert len(found) > 1


def test_worst_mistakes_accepts_a_right_class_of_probability_0() -> None:
    probabilities = torch.eye(100)[:20]
    pixels(plots.worst_mistakes(torch.rand(20, 3, 8, 8), torch.arange(20) + 1, probabilities, LONG_NAMES))


@pytest.mark.parametrize("shape", [(32, 1, 3, 3), (1, 1, 5, 5), (100, 3, 3, 3), (9, 6, 1, 1)])
def test_filters_are_drawn_for_any_number_of_channels(shape: tuple[int, ...]) -> None:
    pixels(plots.filters(torch.randn(shape)))


def test_filters_of_zero_are_white_in_grey_and_grey_in_colour() -> None:
    assert (247, 247, 247) in colours(plots.filters(torch.zeros(2, 1, 3, 3)))
    assert (127, 127, 127) in colours(plots.filters(torch.zeros(2, 3, 3, 3)))


@pytest.mark.parametrize("layers", ["fastconv", "torch"])
def test_feature_maps_do_not_change_the_network(layers: str) -> None:
    kind = {"layers": torch.nn} if layers == "torch" else {}
    model = build_cnn("conv6x5, conv32same, pool, dropout.5, dense8", (3, 32, 32), 4, **kind).train()
    pixels(plots.feature_maps(model, torch.rand(3, 32, 32)))
    pixels(plots.feature_maps(model.double(), torch.rand(3, 32, 32)))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_feature_maps_accept_one_image_of_every_layout() -> None:
    model, images = build_cnn("conv4, pool, dense8"), np.random.default_rng(0).random((2, 28, 28, 1), dtype=np.float32)
    expected = plots.png(plots.feature_maps(model, images[0]))
    for image in (images[0, ..., 0], images[:1], torch.from_numpy(images[:1]).permute(0, 3, 1, 2)):
        assert plots.png(plots.feature_maps(model, image)) == expected
    for wrong in (images, images[0, 0, :, 0], images[None]):
        with pytest.raises(ValueError, match=r"one image \(C, H, W\), .* is expected, not \("):
            plots.feature_maps(model, wrong)


def test_feature_maps_need_a_convolution() -> None:
    with pytest.raises(ValueError, match="no convolution"):
        plots.feature_maps(build_cnn("dense8"), torch.rand(1, 28, 28))


def test_names_are_shortened_in_the_middle() -> None:
    assert drawn("automobile", 10) == "automobile"
    assert drawn("aquarium fish 12", 12) == "aquariu…h 12"
    assert drawn("a $ b\nc") == r"a \$ b c"


def test_names_that_are_equal_when_shortened_get_their_index() -> None:
    names = ["automobile", *(f"a class of the name no. {index} of many others" for index in range(2))]
    assert drawn(names[1], 16) == drawn(names[2], 16)
    assert drawn_names(names, 16) == ["automobile", *(f"{drawn(names[i], 12)} ({i})" for i in (1, 2))]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.42, "42 %"), (0.9996, "99.96 %"), (1 - 1e-7, "> 99.99 %"), (1e-9, "< 0.01 %")],
)
def test_percentages_do_not_round_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


# Figures, titles, legends and arrays


def every_plot(**options: Any) -> dict[str, Any]:
    """All plots as functions, with arrays in place of tensors."""
    labels, probabilities = (values.numpy() for values in predictions(6, 10))
    images = np.random.default_rng(0).random((6, 12, 12), dtype=np.float32)
    model = build_cnn("conv6, pool, dense8", (1, 12, 12))
    return {
        "training_curves": lambda **given: plots.training_curves(history(2), **given),
        "prediction_grid": lambda **given: plots.prediction_grid(images, labels, probabilities, **given),
        "confusion_matrix": lambda **given: plots.confusion_matrix(labels, probabilities, **given),
        "worst_mistakes": lambda **given: plots.worst_mistakes(images, labels, probabilities, **given),
        "filters": lambda **given: plots.filters(model, **given),
        "feature_maps": lambda **given: plots.feature_maps(model, images[0], **given),
    }


@pytest.mark.parametrize("name", every_plot())
def test_every_plot_returns_a_figure_that_has_a_title_and_can_be_saved(name: str, tmp_path: Path) -> None:
    draw = every_plot()[name]
    # The same function writes all formats of every plot.
    formats = [(".png", b"\x89PNG"), *([(".pdf", b"%PDF"), (".svg", b"<?xml")] if name == "filters" else [])]
    for ending, start in formats:
        path = tmp_path / f"picture{ending}"
        figure = draw(title="of my own", path=path)
        assert path.read_bytes().startswith(start)
    assert isinstance(figure, Figure)
    assert "of my own" in texts(figure)
    if name == "filters":
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    untitled = draw()
    untitled.draw_without_rendering()  # makes the labels of the axes
    assert len(texts(untitled)) == len(texts(figure))  # there is a title without title=
    with pytest.raises(OutputError, match="cannot write"):
        draw(path=tmp_path / "missing" / "picture.png")
    with pytest.raises(ValueError, match="Format 'abc' is not supported"):
        draw(path=tmp_path / "picture.abc")
    assert not (tmp_path / "picture.abc").exists()


@pytest.mark.parametrize("name", every_plot())
def test_every_plot_draws_in_the_place_of_given_axes(name: str) -> None:
    draw = every_plot()[name]
    whole = Figure(layout="constrained", figsize=(12, 6))
    left, right = whole.subplots(1, 2)
    left.plot([1, 2])
    assert draw(ax=right) is whole
    assert whole.axes[0] is left
    assert len(whole.axes) > 1
    place = whole.bbox.x0 + whole.bbox.width / 2 - 1
    assert all(axes.get_window_extent().x0 >= place - 60 for axes in whole.axes[1:])
    pixels(whole)
    halves = Figure(layout="constrained", figsize=(12, 6))
    _, part = halves.subfigures(1, 2)
    assert draw(ax=part) is halves
    assert isinstance(part, SubFigure)
    assert len(halves.axes) > 0
    with pytest.raises(TypeError, match="ax must be axes, a subfigure or a figure of matplotlib, not int"):
        draw(ax=3)
    if name != "confusion_matrix":
        free = Figure().add_axes((0.1, 0.1, 0.5, 0.5))
        with pytest.raises(ValueError, match=r"pass axes that subplots\(\) made"):
            draw(ax=free)


def test_legends_name_the_colours() -> None:
    drawn = every_plot()
    assert {"correct prediction, true class", "wrong prediction"} <= set(texts(drawn["prediction_grid"]()))
    assert {"predicted class", "true class"} <= set(texts(drawn["worst_mistakes"]()))
    assert {"training", "validation"} <= set(texts(drawn["training_curves"]()))


def test_in_a_dark_style_text_is_light_and_the_background_transparent() -> None:
    for draw in every_plot().values():
        light = np.asarray(Image.open(io.BytesIO(plots.png(draw()))).convert("RGBA"))
        with plots.dark():
            dark = np.asarray(Image.open(io.BytesIO(plots.png(draw()))).convert("RGBA"))
        assert (light[..., 3] == 255).all()
        assert tuple(light[0, 0]) == (255, 255, 255, 255)
        assert dark[0, 0, 3] == 0
        opaque = dark[dark[..., 3] == 255][:, :3]
        assert (opaque == (227, 230, 234)).all(1).any()  # the colour of the text


def test_every_form_of_a_history_gives_the_same_curves() -> None:
    class OfKeras:
        def __init__(self, history: dict[str, list[float]]) -> None:
            self.history, self.epoch = history, list(range(len(history["loss"])))

    epochs = history(3)
    ours = History(EpochResult(**epoch) for epoch in epochs)
    with_old_names = {name.replace("accuracy", "acc"): values for name, values in ours.history.items()}
    expected = pixels(plots.training_curves(epochs))
    for form in (ours, ours.history, list(ours), OfKeras(ours.history), with_old_names):
        assert np.array_equal(pixels(plots.training_curves(form)), expected)
    for wrong, error, message in (
        (3, TypeError, "the figures of the epochs are expected"),
        ("loss", TypeError, "the figures of the epochs are expected"),
        ({"loss": [1.0]}, ValueError, "the history has no accuracy"),
        (History(), ValueError, "no epoch"),
        ({}, ValueError, "no epoch"),
    ):
        with pytest.raises(error, match=message):
            plots.training_curves(wrong)


def test_plots_accept_arrays_of_every_layout() -> None:
    labels, probabilities = predictions(4, 10)
    images = torch.rand(4, 3, 8, 8)
    pixels_of = (images * 255).byte()
    expected = pixels(plots.prediction_grid(pixels_of, labels, probabilities))
    for given in (pixels_of.numpy(), pixels_of.permute(0, 2, 3, 1).numpy(), pixels_of.float() / 255):
        found = plots.prediction_grid(given, torch.eye(10)[labels].numpy(), probabilities.numpy())
        assert np.array_equal(pixels(found), expected)
    grey = images[:, 0]
    assert np.array_equal(
        pixels(plots.worst_mistakes(grey.numpy(), labels.numpy(), probabilities.numpy())),
        pixels(plots.worst_mistakes(grey[:, None], labels, probabilities)),
    )


def test_plots_refuse_arguments_that_do_not_fit_together() -> None:
    labels, probabilities = predictions(4, 10)
    images = torch.rand(4, 8, 8)
    for draw, message in (
        (
            lambda: plots.prediction_grid(images[:0], labels[:0], probabilities[:0]),
            "1 to 200 images can be drawn, not 0",
        ),
        (lambda: plots.prediction_grid(torch.rand(201, 8, 8), *predictions(201, 2)), "not 201: pass a part"),
        (lambda: plots.prediction_grid(images[:3], labels, probabilities), "3 images, but 4 labels"),
        (lambda: plots.prediction_grid(images, labels, probabilities[:3]), r"must be \(4, 10\), .*not \(3, 10\)"),
        (lambda: plots.prediction_grid(images, labels, probabilities[:, 0]), "images by classes"),
        (lambda: plots.prediction_grid(images, labels + 10, probabilities), "labels must be 0 to 9"),
        (lambda: plots.prediction_grid(images[0], labels, probabilities), r"not \(8, 8\)"),
        (lambda: plots.confusion_matrix(labels, labels[:2]), "4 labels, but 2 predictions"),
        (lambda: plots.confusion_matrix(labels + 5, labels, ["a"]), "has no name: class_names has 1 names"),
        (lambda: plots.filters(torch.rand(3)), r"is \(K, C, R, S\), not \(3,\)"),
        (lambda: plots.filters(torch.nn.Linear(2, 2)), "no convolution"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


# The report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short training and its report."""
    folder = tmp_path_factory.mktemp("runs") / "a<b & c"
    train = ["train", "--model", "simple-cnn", "--limit", "200", "--epochs", "1", "--validation-split", "0"]
    assert main([*train, "--output", str(folder), "--report"]) == 0
    return folder


class Page(HTMLParser):
    """The images, the addresses and the text of a page. Its elements must be closed in the right order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.dark: list[dict[str, str | None]] = []
        self.addresses: list[str | None] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "source":
            self.dark.append(values)
        if tag not in ("img", "meta", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_holds_every_plot_and_needs_no_other_file(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = Page(text)
    assert sorted(path.stem for path in (run / "plots").iterdir()) == sorted(PLOTS)
    assert [image["src"] for image in page.images] == [
        "data:image/png;base64," + base64.b64encode((run / "plots" / f"{name}.png").read_bytes()).decode()
        for name in PLOTS
    ]
    assert all(image["alt"] for image in page.images)
    assert [source["media"] for source in page.dark] == ["(prefers-color-scheme: dark)"] * len(PLOTS)
    assert not {source["srcset"] for source in page.dark} & {image["src"] for image in page.images}
    assert all(str(address).startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import", text)


def test_a_report_gives_the_accuracy_and_the_speed(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    record = json.loads((run / "history.json").read_text())
    assert f"{record['test_accuracy']:.2%} of 1,000 test images of mnist5k" in page.text
    assert f"{record['epochs'][0]['images_per_second']:,.0f} images/s" in page.text
    assert "simple-cnn on mnist5k" in page.text
    assert record["versions"]["torch"] in page.text
    assert str(run) in page.text  # with its < and & as text


def test_a_report_gives_the_layers_the_date_and_the_machine(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    record = json.loads((run / "history.json").read_text())
    date = datetime.fromisoformat(record["date"])
    assert abs(datetime.now().astimezone() - date) < timedelta(hours=2)
    machine = f"{record['versions']['cpu']}, {record['versions']['threads']} threads"
    assert f"Trained on {date.day} {date:%B %Y, %H:%M}, {machine}. Run in " in page.text
    model = build_model("simple-cnn")
    for row in summary.rows(model, (1, 28, 28)):
        assert f"{row.name} ({row.kind}){row.shape}{row.parameters:,}" in page.text
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in page.text
    assert "Confusion matrix" in page.text
    del record["date"]  # a run of an earlier version
    assert report._date(record, RunFolder(run)).date() == date.date()


@pytest.mark.usefixtures("blank_pictures")  # not for the fixture `run`, which is made before
def test_report_writes_to_the_given_file(run: Path, tmp_path: Path, capsys: Output) -> None:
    output = tmp_path / "made" / "page.html"
    assert main(["report", str(run), "--output", str(output), "--backend", "torch"]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    assert len(Page(output.read_text()).images) == len(PLOTS)


@pytest.mark.usefixtures("blank_pictures")
def test_a_report_of_coloured_images_without_mistakes_escapes_the_names(tmp_path: Path) -> None:
    model = build_cnn("conv4, pool, dense4", (3, 12, 12), 3)
    images = torch.rand(6, 3, 12, 12)
    labels = evaluation.predict(model, images).argmax(1)
    names = ("<b>bold</b>", "a & b", '"quoted" $')
    data = DataSet("tiny <set>", images, labels, images, labels, names)
    record: dict[str, Any] = {"config": {"model": "<i>"}, "versions": {"<u>": "&amp;"}, "epochs": history(2)}
    record["config"] |= {"dataset": "folder", "data_dir": "/of/pictures"}
    record["compare"] = {"backend": "<torch>", "epochs": history(2), "test_accuracy": 0.4321}
    (tmp_path / "history.json").write_text(json.dumps(record))
    text = report.write(RunFolder(tmp_path), model, data).read_text()
    page = Page(text)
    assert "100.00% of 6 test images of tiny <set>" in page.text
    assert "<title>&lt;i&gt; on pictures</title>" in text
    assert "Training on the backend <torch>" in page.text
    assert "43.21% of the test images predicted correctly" in page.text
    assert "fastconv 1,000 images/s, <torch> 1,000 images/s: <torch> and fastconv are equally fast" in page.text
    assert "&amp;amp;" in text
    assert not re.search("<b>|<i>|<u>", text)
    assert names[int(labels[0])] in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run is not the folder of a run: it has no history.json"),
        ("{", "run/history.json is not the history of a run, or is damaged"),
        ("[]", "is not the history"),
        ({"epochs": []}, "is not the history"),
        ({"epochs": 3}, "is not the history"),
        ({"epochs": [{**history(1)[0], "loss": "<b>"}]}, "is not the history"),
        ({"epochs": [history(2)[0], history(2, False)[1]]}, "is not the history"),
        ({"epochs": [{**history(1)[0], "loss": float("nan")}]}, "is not the history"),
        ({"versions": 3}, "is not the history"),
        ({"compare": {"epochs": history(1), "test_accuracy": "<b>"}}, "is not the history"),
        ({"compare": {"epochs": []}}, "is not the history"),
        ({}, "run is not the folder of a run: it has no checkpoint.pt"),
    ],
)
def test_an_unreadable_run_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    if isinstance(content, dict):
        content = json.dumps({"config": {}, "versions": {}, "epochs": history(1), **content})
    if content is not None:
        Path("run/history.json").write_text(content)
    assert main(["report", "run"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_wrong_arguments_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("half").mkdir()
    Path("half/training.pt").write_text("")
    shutil.copytree(run, "whole")
    shutil.rmtree("whole/plots")
    Path("whole/plots").write_text("mine")
    for arguments, message in (
        (["nowhere"], "cannot read nowhere: No such file"),
        (["file"], ". is not the folder of a run: it has no history.json"),
        (["half"], "the run in half is not finished; to continue: fastconv train --output half --resume\n"),
        ([str(run), "--output", "page.pdf"], "--output must end in .html: page.pdf"),
        ([str(run), "--output", "file/page.html"], "cannot write into file: "),
        (["whole"], "cannot write into whole/plots: "),
        ([str(run), "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere is not a folder"),
        ([], "there is no run here yet"),
    ):
        assert main(["report", *arguments]) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1


def test_plot_shows_the_picture_if_there_is_a_display(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    shown: list[str | None] = []

    def show(image: Image.Image, title: str | None = None) -> bool:
        shown.append(title)
        return True

    monkeypatch.setattr(ImageShow, "show", show)
    plot = ["plot", str(run / "checkpoint.pt"), "--count", "1", "--output", str(tmp_path / "one.png"), "--show"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(plot) == 0
    assert shown == ["one.png"]
    monkeypatch.setattr(ImageShow, "show", lambda *_: False)
    assert main(plot) == 2
    assert "no display or no picture viewer was found" in capsys.readouterr().err
