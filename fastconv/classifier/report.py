"""The report of a run: its figures and pictures on one self-contained page, ``report.html``."""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastconv.classifier import evaluation, files, plots, summary
from fastconv.classifier.data import DataSet, display_name
from fastconv.classifier.history import speed_line
from fastconv.classifier.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREDICTIONS = 12
_MACHINE = {"cpu": "", "threads": " threads"}

_CSS = """
:root { color-scheme: light dark; --text: #1d2126; --faint: #59626c; --back: #fff; --line: #d5dae0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e6ea; --faint: #a2abb5; --back: #16191d; --line: #3a4149; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0; }
.accuracy { font-size: 1.25rem; }
.accuracy strong { font-size: 2.2rem; }
.faint, figcaption { color: var(--faint); }
figure { margin: 1.5rem 0; }
figcaption { margin-top: .4rem; font-size: .93rem; }
.scroll { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
img.wide { width: 100%; min-width: 40rem; max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.numbers th, .numbers td, .layers th, .layers td { white-space: nowrap; overflow-wrap: normal; }
.numbers th, .numbers td, .number { text-align: right; }
pre { font-size: .82rem; white-space: pre-wrap; margin: 0; }
"""


@dataclass(frozen=True)
class Picture:
    """A plot with its title, caption and alternative text (``alt``). A ``wide`` plot scrolls on a phone.

    ``png`` is drawn for a light page, ``dark`` for a dark page.
    """

    name: str
    title: str
    png: bytes
    dark: bytes
    caption: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Facts:
    """The accuracy on the test images, the run's folder, the time of its end, and the layers of its network."""

    accuracy: float
    run: str
    date: datetime.datetime
    layers: Sequence[summary.Row]


def _images(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """Draw a picture for a light page and for a dark page."""
    light = plots.png(draw())
    with plots.dark():
        return light, plots.png(draw())


def write(folder: RunFolder, model: nn.Module, data: DataSet, output: Path | None = None) -> Path:
    """Write the report of the run in ``folder``, and write its pictures as PNG files into the sub-folder ``plots``.

    Args:
        model: the trained network.
        data: the data set whose test images are predicted and drawn.
        output: the page to write. ``None`` means ``report.html`` in the folder.

    Returns:
        The path of the page.

    Raises:
        UserError: if the run's history cannot be read, or something cannot be written.
    """
    record = folder.read_history()
    output = folder.report if output is None else output
    files.check_output_folder(output.parent)
    files.check_output_folder(folder.plots)
    pictures, accuracy = draw(record, model, data)
    for picture in pictures:
        files.write_atomically(folder.plots / f"{picture.name}.png", picture.png)
    facts = Facts(accuracy, str(folder.path), _date(record, folder), summary.rows(model, data.shape))
    files.write_atomically(output, page(record, data, facts, pictures).encode(errors="replace"))
    return output


def _date(record: Mapping[str, Any], folder: RunFolder) -> datetime.datetime:
    """Return when the run ended. Earlier versions of fastconv did not write that to history.json."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return datetime.datetime.fromisoformat(record["date"])
    return datetime.datetime.fromtimestamp(folder.history.stat().st_mtime)


def draw(record: Mapping[str, Any], model: nn.Module, data: DataSet) -> tuple[list[Picture], float]:
    """Draw all pictures of a run. Return them and the accuracy on the test images.

    Args:
        record: the content of history.json.
    """
    images, labels, names = data.test_images, data.test_labels, data.class_names
    probabilities = evaluation.predict(model, images)
    predictions = probabilities.argmax(1)
    wrong = int((predictions != labels).sum())
    first = slice(0, _PREDICTIONS)
    count = min(_PREDICTIONS, len(images))
    pictures = [
        _curves(record),
        Picture(
            "predictions",
            "Predictions",
            *_images(
                lambda: plots.prediction_grid(
                    images[first], labels[first], probabilities[first], class_names=names, columns=2
                )
            ),
            f"The first {count} test images with the predicted class: blue is correct, red is wrong. The bars are the"
            " probabilities of the classes.",
            f"{count} test images. {int((predictions[first] == labels[first]).sum())} of the predictions are correct.",
            wide=True,
        ),
        Picture(
            "confusion_matrix",
            "Confusion matrix",
            *_images(lambda: plots.confusion_matrix(labels, predictions, names)),
            "Number of test images by true class (row) and predicted class (column). Correct predictions are on the"
            " diagonal.",
            f"A table of {len(names)} by {len(names)} classes. {len(images) - wrong} of {len(images)} images are on the"
            " diagonal.",
            wide=len(names) > 12,
        ),
        Picture(
            "worst_mistakes",
            "The worst mistakes",
            *_images(lambda: plots.worst_mistakes(images, labels, probabilities, names)),
            "The wrong predictions with the largest loss. The predicted class is red, the true class is blue. Each is"
            " followed by its probability.",
            f"Up to 12 of the {wrong} wrongly predicted test images." if wrong else "No mistakes.",
            wide=wrong > 0,
        ),
    ]
    return [*pictures, *_layers(model, images[0], names[int(labels[0])])], 1 - wrong / len(images)


def _curves(record: Mapping[str, Any]) -> Picture:
    epochs = record["epochs"]
    validated = epochs[-1]["val_loss"] is not None
    shown = "training and validation images" if validated else "training images"
    return Picture(
        "training_curves",
        "Training",
        *_images(lambda: plots.training_curves(epochs, record["config"].get("loss", "cross-entropy"))),
        f"Loss and accuracy of the {shown} by epoch."
        + (" The training figures are means over the epoch, during which the weights change." if validated else ""),
        f"Two charts of the {shown} by epoch. After the last of {len(epochs)} epochs, the training loss is"
        f" {epochs[-1]['loss']:.3f} and the training accuracy {epochs[-1]['accuracy']:.1%}.",
    )


def _layers(model: nn.Module, image: Tensor, name: str) -> list[Picture]:
    """Draw the kernels of the first convolution, and the feature maps of ``image``, whose class is ``name``."""
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        return []
    zero = "Grey is 0." if convolution.weight.shape[1] == 3 else "Red weights are positive, blue ones negative."
    return [
        Picture(
            "filters",
            "Kernels of the first layer",
            *_images(lambda: plots.filters(convolution.weight)),
            f"The weights of the first convolution. {zero}",
            f"{len(convolution.weight)} small kernels of the first convolution, as coloured squares.",
        ),
        Picture(
            "feature_maps",
            "Feature maps",
            *_images(lambda: plots.feature_maps(model, image)),
            f"The first test image ({name}), and the output of each convolution for it, after its ReLU and pooling.",
            "An image, and below it the outputs of each convolution for it, as small maps.",
            wide=True,
        ),
    ]


def page(record: Mapping[str, Any], data: DataSet, facts: Facts, pictures: Sequence[Picture]) -> str:
    """Return the HTML of a report. Class names, paths and all other values are escaped."""
    config, epochs = record["config"], record["epochs"]
    count = len(data.test_images)
    images = display_name(str(config.get("dataset", data.name)), str(config.get("data_dir", data.name)))
    title = f"{config.get('model', 'A network')} on {images}"
    speed = statistics.median(epoch["images_per_second"] for epoch in epochs)
    seconds = statistics.median(epoch["seconds"] for epoch in epochs)
    versions = {name: value for name, value in record["versions"].items() if name != "configuration"}
    configuration = record["versions"].get("configuration", [])
    machine = "".join(f", {versions[name]}{unit}" for name, unit in _MACHINE.items() if name in versions)
    figures = "".join(map(_figure, pictures))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fastconv">
<title>{_text(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p class="accuracy"><strong>{facts.accuracy:.2%}</strong> of {count:,} test images of {_text(data.name)} predicted
correctly</p>
<p>{speed:,.0f} images/s in training, {seconds:.2f} s an epoch (medians of {len(epochs)} epoch{"s" * (len(epochs) > 1)},
without validation)</p>
<p class="faint">Trained on {facts.date.day} {facts.date:%B %Y, %H:%M}{_text(machine)}. Run in {_text(facts.run)}</p>
<h2>Model</h2>
{_model(facts.layers)}
<h2>Epochs</h2>
{_epochs(epochs)}
{_comparison(record)}
{figures}
<h2>Configuration</h2>
{_table(config)}
<h2>Versions</h2>
{_table(versions)}
{_lines(configuration)}
</body>
</html>
"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _figure(picture: Picture) -> str:
    source, dark = (
        "data:image/png;base64," + base64.b64encode(content).decode("ascii") for content in (picture.png, picture.dark)
    )
    # On a phone, the text of a wide figure would become too small, so such a figure keeps its width and scrolls.
    kind = ' class="wide"' if picture.wide else ""
    return (
        f'<h2>{_text(picture.title)}</h2>\n<figure>\n<div class="scroll"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img{kind} src="{source}" alt="{_text(picture.alt)}"></picture></div>\n'
        f"<figcaption>{_text(picture.caption)}</figcaption>\n</figure>\n"
    )


def _table(values: Mapping[str, Any]) -> str:
    rows = ""
    for name, value in values.items():
        shown = "none" if value is None else value
        rows += f'<tr><th scope="row">{_text(name.replace("_", " "))}</th><td>{_text(shown)}</td></tr>\n'
    return f'<div class="scroll"><table>\n{rows}</table></div>'


def _model(layers: Sequence[summary.Row]) -> str:
    """Return the table of the layers, and the number of parameters."""
    rows = "".join(
        f"<tr><td>{_text(row.name)} ({_text(row.kind)})</td><td>{_text(row.shape)}</td>"
        f'<td class="number">{row.parameters:,}</td></tr>\n'
        for row in layers
    )
    head = '<th scope="col">layer</th><th scope="col">output shape</th><th scope="col" class="number">parameters</th>'
    total = f"<p>{sum(row.parameters for row in layers):,} parameters. N is the number of images.</p>"
    return f'<div class="scroll"><table class="layers">\n<tr>{head}</tr>\n{rows}</table></div>\n{total}'


def _epochs(epochs: Iterable[Mapping[str, Any]]) -> str:
    header = ("epoch", "loss", "accuracy", "validation loss", "validation accuracy", "seconds", "images/s")
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    rows = []
    for epoch in epochs:
        cells = (
            str(epoch["epoch"]),
            f"{epoch['loss']:.4f}",
            f"{epoch['accuracy']:.2%}",
            "–" if epoch["val_loss"] is None else f"{epoch['val_loss']:.4f}",
            "–" if epoch["val_accuracy"] is None else f"{epoch['val_accuracy']:.2%}",
            f"{epoch['seconds']:.2f}",
            f"{epoch['images_per_second']:,.0f}",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    return f'<div class="scroll"><table class="numbers">\n<tr>{head}</tr>\n{"".join(rows)}</table></div>'


def _comparison(record: Mapping[str, Any]) -> str:
    """Return the section about the run on the other backend, if there was one."""
    compare = record.get("compare")
    if compare is None:
        return ""
    runs = {record["config"].get("backend", "fastconv"): record["epochs"], compare["backend"]: compare["epochs"]}
    speeds = {name: statistics.median(epoch["images_per_second"] for epoch in epochs) for name, epochs in runs.items()}
    return (
        f"<h2>Training on the backend {_text(compare['backend'])}</h2>\n<p>{compare['test_accuracy']:.2%} of the test"
        f" images predicted correctly</p>\n<p>{_text(speed_line(speeds))} (medians)</p>\n{_epochs(compare['epochs'])}"
    )


def _lines(lines: object) -> str:
    """Return the section about how the extension was built."""
    text = "\n".join(map(str, lines)) if isinstance(lines, list) else ""
    return f"<details><summary>How fastconv was built</summary>\n<pre>{_text(text)}</pre></details>" if text else ""
