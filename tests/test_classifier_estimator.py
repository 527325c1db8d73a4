"""The methods of the classifier: what they accept, what they return, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastconv.classifier import Callback, Classifier, EarlyStopping, History, ModelCheckpoint, checkpoint, data
from fastconv.classifier.checkpoint import CheckpointError
from fastconv.classifier.config import Diverged, TrainingError
from fastconv.classifier.files import OutputError
from fastconv.classifier.history import EpochResult

SHAPE = (1, 8, 8)
SMALL = "conv4, pool, dense8"
Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """120 images of two classes that are easy to tell apart, and their labels."""
    images, labels = torch.rand(120, *SHAPE), torch.arange(120) % 2
    images[labels == 1, :, :4] *= 0.2
    return images, labels


def small(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(SMALL, SHAPE, **{"classes": 2, **options})


def shown(value: object) -> str:
    """The name of a test's argument, which must not depend on its address."""
    return re.sub(r" at 0x\w+", "", str(value)).replace("\n", "")[:60]


def weights(classifier: Classifier) -> list[Tensor]:
    return [weight.clone() for weight in classifier.model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


# compile


@pytest.mark.parametrize(
    "loss",
    [
        *("categorical_crossentropy", "sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
        *("cross-entropy", "Cross_Entropy", nn.CrossEntropyLoss, nn.CrossEntropyLoss(), nn.functional.cross_entropy),
    ],
    ids=shown,
)
def test_every_spelling_of_the_cross_entropy_trains_to_the_same_weights(
    digits: tuple[Tensor, Tensor], loss: Any
) -> None:
    expected, found = (small().compile(loss=one) for one in ("cross-entropy", loss))
    for classifier in (expected, found):
        classifier.fit(*digits, epochs=1, verbose=0)
    assert same(weights(found), weights(expected))
    assert found.evaluate(*digits) == expected.evaluate(*digits)


@pytest.mark.parametrize("loss", ["mse", "MSE", "mean_squared_error", nn.MSELoss, nn.MSELoss()], ids=shown)
def test_every_spelling_of_the_mean_squared_error_compares_probabilities(
    digits: tuple[Tensor, Tensor], loss: Any
) -> None:
    classifier = small().compile(loss=loss)
    expected = (classifier.predict(digits[0]) - torch.eye(2)[digits[1]]).square().mean()
    assert classifier.evaluate(*digits).loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_of_the_program_is_called_with_logits_and_labels(digits: tuple[Tensor, Tensor]) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        assert (logits.shape[1], labels.dtype) == (2, torch.int64)
        return nn.functional.multi_margin_loss(logits, labels)

    classifier = small().compile(loss=loss, optimizer="sgd", lr=0.1)
    history = classifier.fit(*digits, epochs=4, verbose=0)
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize(
    "optimizer",
    [
        *("adam", "Adam", "ADAMW", "sgd", "SGD", "rmsprop", "RMSprop", torch.optim.NAdam, torch.optim.Adagrad),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ],
    ids=shown,
)
def test_every_kind_of_optimizer_trains(digits: tuple[Tensor, Tensor], optimizer: Any) -> None:
    classifier = small().compile(optimizer)
    history = classifier.fit(*digits, epochs=3, verbose=0)
    assert history[-1].loss < history[0].loss


def test_an_optimizer_instance_keeps_its_learning_rates_and_its_scheduler(digits: tuple[Tensor, Tensor]) -> None:
    classifier = small()
    first, *others = classifier.model.parameters()
    own = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.25)
    classifier.compile(own, schedule="cosine")
    assert classifier.optimizer is own
    classifier.fit(*digits, epochs=1, verbose=0)
    assert [group["lr"] for group in own.param_groups] == [0.5, 0.25]  # the schedule's end is undone
    classifier.compile(own)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(own, 0.1)
    classifier.fit(*digits, epochs=2, verbose=0, callbacks=[lambda result: scheduler.step()])
    assert [group["lr"] for group in own.param_groups] == pytest.approx([0.005, 0.0025])


@pytest.mark.parametrize(
    ("optimizer", "lr", "expected"),
    [
        *(("adam", None, 1e-3), ("sgd", None, 1e-2), ("rmsprop", None, 1e-3), ("adamw", 0.5, 0.5)),
        *((torch.optim.NAdam, None, 2e-3), (torch.optim.NAdam, 0.5, 0.5)),
    ],
    ids=shown,
)
def test_the_learning_rate_is_the_optimizers_default(optimizer: Any, lr: float | None, expected: float) -> None:
    built = small().compile(optimizer, lr=lr).optimizer
    assert built is not None
    assert built.param_groups[0]["lr"] == expected


def test_two_fits_equal_one_of_all_epochs_and_a_new_compile_starts_anew(digits: tuple[Tensor, Tensor]) -> None:
    whole, halves, anew = (small().compile("adam") for _ in range(3))
    whole.fit(*digits, epochs=2, verbose=0)
    for classifier in (halves, anew):
        classifier.fit(*digits, epochs=1, verbose=0)
    anew.compile("adam")
    for classifier in (halves, anew):
        classifier.fit(*digits, epochs=1, verbose=0)
    assert same(weights(halves), weights(whole))
    assert not same(weights(anew), weights(whole))


class Foreign:
    __module__ = "keras.losses"

    def __call__(self, true: Any, predicted: Any) -> None: ...


def foreign_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "unknown loss 'hinge': choose one of cross-entropy, mse"),
        ({"loss": "sparse_categorical_crossentrpy"}, ValueError, "did you mean 'sparse_categorical_crossentropy'"),
        ({"loss": 3}, TypeError, "a loss must be a name"),
        ({"loss": Foreign()}, TypeError, "this loss is Keras's"),
        ({"loss": nn.NLLLoss()}, ValueError, "NLLLoss needs log-probabilities"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, ValueError, "reduction='none'"),
        ({"loss": nn.MSELoss(reduction="sum")}, ValueError, "leave out reduction='sum'"),
        ({"loss": nn.CrossEntropyLoss(), "label_smoothing": 0.1}, ValueError, "label_smoothing belongs to the losses"),
        ({"optimizer": "adm"}, ValueError, "unknown optimizer 'adm': .*did you mean 'adam'"),
        ({"optimizer": 3}, TypeError, "an optimizer must be a name"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "LBFGS"),
        ({"optimizer": foreign_optimizer}, ValueError, "parameters of another model"),
        ({"optimizer": lambda parameters: 3}, TypeError, "an optimizer of torch.optim is expected, not 3"),
        ({"optimizer": torch.optim.SGD, "lr": -1.0}, TrainingError, "learning rate must be above 0"),
        ({"optimizer": foreign_optimizer(()), "lr": 0.1}, TypeError, "has its own learning rate"),
        ({"optimizer": torch.optim.SGD, "dtype": "float64", "loss": "hinge"}, ValueError, "unknown loss"),
        ({"optimizer": foreign_optimizer, "dtype": "float64"}, ValueError, "parameters of another model"),
        ({"metrics": ["accuracy", "auc"]}, ValueError, "unknown metric 'auc'"),
        ({"metrics": [len, len]}, ValueError, "two metrics have the name 'len'"),
        ({"metrics": {"loss": len}}, ValueError, "the name 'loss'"),
        ({"metrics": {"a": 3}}, TypeError, "the metric 'a' must be a function"),
        ({"scedule": "cosine"}, TypeError, "unexpected keyword argument 'scedule'; did you mean 'schedule'"),
        ({"schedule": "exponential"}, TrainingError, "unknown schedule"),
    ],
    ids=shown,
)
def test_a_refused_compile_changes_nothing(
    digits: tuple[Tensor, Tensor], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    classifier = small().compile("sgd", "mse", metrics={"mean": lambda p, y: p.mean()})
    before = (repr(classifier), classifier.optimizer, classifier.evaluate(*digits))
    with pytest.raises(error, match=message):
        classifier.compile(**arguments)
    assert (repr(classifier), classifier.optimizer, classifier.evaluate(*digits)) == before
    assert {weight.dtype for weight in weights(classifier)} == {torch.float32}
    classifier.fit(*digits, epochs=1, verbose=0)


def test_a_loss_that_fails_or_returns_no_number_is_explained(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TypeError, match=r"does not accept logits \(64, 2\) and integer labels \(64,\)"):
        small().compile(loss=nn.BCEWithLogitsLoss()).fit(*digits, verbose=0)
    with pytest.raises(TypeError, match=r"must return a tensor without dimensions .*not shape \(64,\)"):
        small().compile(loss=lambda logits, labels: logits[:, 0]).fit(*digits, verbose=0)


# images and labels


def as_nothing(images: Tensor) -> Any:
    return images


LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "(N, C, H, W) tensor": as_nothing,
    "(N, C, H, W) array": lambda images: images.numpy(),
    "(N, H, W, C) array": lambda images: images.permute(0, 2, 3, 1).numpy(),
    "(N, H, W) array": lambda images: images[:, 0].numpy(),
    "(N, H, W) float64": lambda images: images[:, 0].double().numpy(),
    "list of arrays": lambda images: list(images[:, 0].numpy()),
    "list of tensors": lambda images: list(images),
    "lists": lambda images: images[:, 0].tolist(),
    "reversed array": lambda images: images.flip(0).numpy()[::-1],
    "read-only array": lambda images: np.frombuffer(images.numpy().tobytes(), np.float32).reshape(images.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_every_layout_give_the_same_predictions(digits: tuple[Tensor, Tensor], layout: str) -> None:
    classifier = small()
    given = LAYOUTS[layout](digits[0])
    found, expected = classifier.predict(given), classifier.predict(digits[0])
    assert isinstance(found, Tensor if "tensor" in layout else np.ndarray)
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=1e-6)
    assert classifier.evaluate(given, digits[1]) == pytest.approx(classifier.evaluate(*digits))


def test_colour_images_may_have_their_channels_last() -> None:
    classifier = Classifier("conv4, pool", (3, 8, 8), 2)
    images = torch.rand(5, 3, 8, 8)
    for given in (images.permute(0, 2, 3, 1), (images * 255).byte().permute(0, 2, 3, 1)):
        expected = classifier.predict(images if given.is_floating_point() else (images * 255).byte().float() / 255)
        torch.testing.assert_close(classifier.predict(given), expected)
    square = Classifier("conv4x1", (3, 3, 3), 2)  # both layouts fit: images are read as (C, H, W)
    images = torch.rand(5, 3, 3, 3)
    assert not torch.allclose(square.predict(images), square.predict(images.permute(0, 2, 3, 1)))


def test_uint8_images_are_divided_by_255_and_large_floats_are_reported(digits: tuple[Tensor, Tensor]) -> None:
    classifier, pixels = small(), (digits[0] * 255).byte()
    torch.testing.assert_close(classifier.predict(pixels), classifier.predict(pixels.float() / 255))
    with pytest.warns(UserWarning, match="floats up to 25.*divide them by 255"):
        classifier.predict(pixels.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict(digits[0] * 1.2)


@pytest.mark.parametrize(
    "convert",
    [
        lambda labels: labels.numpy(),
        lambda labels: labels.tolist(),
        lambda labels: labels.byte().numpy(),
        lambda labels: labels[:, None].numpy().astype("uint8"),  # as keras.datasets.cifar10 has them
        *(lambda labels, kind=kind: np.eye(2, dtype=kind)[labels.numpy()] for kind in ("f4", "f8", "i8", "u1", "?")),
        lambda labels: torch.eye(2)[labels].tolist(),
    ],
)
def test_labels_of_every_form_give_the_same_scores(digits: tuple[Tensor, Tensor], convert: Any) -> None:
    classifier = small()
    assert classifier.evaluate(digits[0], convert(digits[1])) == classifier.evaluate(*digits)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.rand(4, 64),
            [0] * 4,
            r"\(N, 1, 8, 8\) or \(N, 8, 8\) or .* not \(4, 64\): reshape them to \(N, 1",
        ),
        (torch.rand(8, 8), [0] * 8, r"not \(8, 8\): for a single image, add a dimension with images\[None\]"),
        (torch.rand(4, 3, 8, 8), [0] * 4, r"pass Classifier\(shape=\(C, H, W\)\)"),
        (torch.full((4, 8, 8), torch.nan), [0] * 4, "must be finite"),
        ([[1, 2], [3]], [0], "numbers are expected"),
        ([torch.rand(8, 8), torch.rand(7, 8)], [0, 0], "do not have the same shape"),
        (np.array(["cat"] * 4), [0] * 4, "numbers are expected"),
        (torch.rand(4, 8, 8), [0, 1, 2, 0], "labels must be 0 to 1, not 0 to 2"),
        (torch.rand(4, 8, 8), ["0"] * 4, "numbers are expected"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        small().evaluate(images, labels)


# Datasets and loaders


class Shaking(Dataset[tuple[Tensor, int]]):
    """Images that change with each access, as random transforms make them."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.seen = images, labels, [0] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen[index] += 1
        return self.images[index] * (1 - 0.01 * torch.rand(())), int(self.labels[index])


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __iter__(self) -> Any:
        return zip(self.images, self.labels.tolist(), strict=True)


def test_a_loader_is_iterated_anew_in_each_epoch(digits: tuple[Tensor, Tensor]) -> None:
    source, held_out = Shaking(*digits), Shaking(*digits)
    classifier = small().compile()
    history = classifier.fit(DataLoader(source, 32, shuffle=True), validation_data=DataLoader(held_out, 50), epochs=3,
                             verbose=0)  # fmt: skip
    assert set(source.seen) == set(held_out.seen) == {3}
    assert history[2].val_loss is not None
    assert history[2].loss < history[0].loss
    again = small().compile()
    again.fit(DataLoader(Shaking(*digits), 32, shuffle=True), epochs=3, verbose=0)
    once_more = small().compile()
    torch.rand(7)  # earlier random numbers must not matter
    once_more.fit(DataLoader(Shaking(*digits), 32, shuffle=True), epochs=3, verbose=0)
    assert same(weights(again), weights(once_more))


def test_a_dataset_gives_what_its_tensors_give(digits: tuple[Tensor, Tensor]) -> None:
    from_tensors, from_dataset = small().compile(), small().compile()
    source = TensorDataset(*digits)
    expected = from_tensors.fit(*digits, epochs=2, validation_split=0.25, shuffle=False, verbose=0)
    found = from_dataset.fit(source, epochs=2, validation_split=0.25, shuffle=False, verbose=0)
    assert [result.logs() for result in found] == [pytest.approx(result.logs()) for result in expected]
    torch.testing.assert_close(weights(from_dataset), weights(from_tensors))
    loss, accuracy = from_dataset.evaluate(source)
    assert (loss, accuracy) == pytest.approx(from_dataset.evaluate(*digits))
    torch.testing.assert_close(from_dataset.predict(DataLoader(source, 7)), from_dataset.predict(digits[0]))
    shuffled = small().compile()
    shuffled.fit(source, epochs=2, verbose=0)
    assert not torch.allclose(weights(shuffled)[0], weights(from_dataset)[0])


def test_a_stream_without_a_length_trains(digits: tuple[Tensor, Tensor]) -> None:
    source = Stream(*digits)
    history = small().compile().fit(source, epochs=2, verbose=0)
    assert history[0].accuracy > 0
    with pytest.raises(TrainingError, match="the schedule cosine needs a DataLoader with a length"):
        small().compile(schedule="cosine").fit(source, epochs=2, verbose=0)


def test_arguments_that_do_not_go_together_are_refused(digits: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(TensorDataset(*digits), 10)
    for arguments, options, message in (
        ((loader, digits[1]), {}, "has its own labels"),
        ((loader,), {"batch_size": 3}, "has its own batch size"),
        ((loader,), {"validation_split": 0.5}, "pass validation_data"),
        ((Stream(*digits),), {"validation_split": 0.5}, "pass validation_data"),
        ((digits[0],), {}, "labels are missing"),
        (digits, {"validation_data": digits[0]}, "a pair of images and labels"),
        (digits, {"validation_data": digits, "validation_split": 0.5}, "not both"),
        (digits, {"callbacks": [3]}, "a callback must be"),
        (digits, {"callbacks": [EarlyStopping]}, "a callback must be"),
    ):
        with pytest.raises(TypeError, match=message):
            small().fit(*arguments, verbose=0, **options)
    with pytest.raises(ValueError, match="verbose must be 0"):
        small().fit(*digits, verbose=7)
    with pytest.raises(TrainingError, match="a batch must be a pair of images and labels, not a tensor"):
        small().fit(DataLoader(digits[0], 10), verbose=0)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no images to train on"):
        small().fit(DataLoader(TensorDataset(*digits), 500, drop_last=True), verbose=0)
    with pytest.raises(TrainingError, match="batch size must be at least 1"):
        small().predict(digits[0], batch_size=0)
    with pytest.raises(TrainingError, match="class_names must be 2 names"):
        Classifier(SMALL, SHAPE, 2, class_names=("a", "b", "c"))
    assert Classifier(SMALL, SHAPE, class_names=("a", "b", "c")).predict(digits[0]).shape == (120, 3)


# fit: progress, history and callbacks


def test_verbose_prints_nothing_or_a_line_per_epoch(digits: tuple[Tensor, Tensor], capsys: Output) -> None:
    small().fit(*digits, epochs=2, verbose=0)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    for verbose in (1, 2, "auto"):  # the standard output is no terminal here
        small().fit(*digits, epochs=2, validation_split=0.5, verbose=verbose)
        captured = capsys.readouterr()
        assert [line.split("  ")[0] for line in captured.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
        assert "validation accuracy" in captured.out
        assert "\r" not in captured.out + captured.err


def test_a_terminal_shows_a_bar_that_the_line_replaces(
    digits: tuple[Tensor, Tensor], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    small().fit(*digits, epochs=1, batch_size=30, verbose=1)
    drawn = capsys.readouterr().out
    assert "epoch 1/1:" in drawn
    assert "/4 [" in drawn
    assert drawn.rpartition("\r")[2].startswith("epoch 1/1  loss ")


def test_the_history_is_a_list_with_keras_attributes(digits: tuple[Tensor, Tensor]) -> None:
    classifier = small().compile(metrics={"mean": lambda p, y: p.mean()})
    history = classifier.fit(*digits, epochs=2, validation_split=0.5, verbose=0)
    assert isinstance(history, History)
    assert [result.epoch for result in history] == [1, 2]
    assert history.epoch == [0, 1]
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy", "val_mean"]
    assert history.history["val_mean"] == pytest.approx([0.5, 0.5])
    assert history.history["loss"] == [result.loss for result in history]
    assert len(repr(history).splitlines()) == 3
    assert repr(history).splitlines()[0].split() == [
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_mean", "seconds")
    ]
    assert history._repr_html_().count("<tr>") == 3
    assert classifier.history is history
    assert repr(History()) == "History: no epoch yet"
    assert "val_loss" not in small().fit(*digits, epochs=1, verbose=0).history


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append(("train begin", self.params["epochs"], self.params["steps"]))

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append(("train end", sorted(logs)))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("begin", epoch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("end", epoch, sorted(logs)))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("batch", batch, sorted(logs)))


def test_callbacks_are_called_as_in_keras(digits: tuple[Tensor, Tensor]) -> None:
    recorder, results = Recorder(), []
    small().fit(*digits, epochs=2, batch_size=60, verbose=0, callbacks=[recorder, results.append])
    names = ["accuracy", "loss"]
    epochs = [[("begin", epoch), ("batch", 0, names), ("batch", 1, names), ("end", epoch, names)] for epoch in range(2)]
    assert recorder.calls == [("train begin", 2, 2), *epochs[0], *epochs[1], ("train end", names)]
    assert [type(result) for result in results] == [EpochResult, EpochResult]


@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_epoch_end"])
def test_a_callback_ends_the_training(digits: tuple[Tensor, Tensor], moment: str) -> None:
    class Stop(Callback):
        pass

    def stop(self: Callback, index: int, logs: Any = None) -> None:
        self.model.stop_training = True

    setattr(Stop, moment, stop)
    recorder = Recorder()
    classifier = small()
    history = classifier.fit(*digits, epochs=5, batch_size=30, validation_split=0.5, verbose=0,
                             callbacks=[Stop(), recorder])  # fmt: skip
    assert len(history) == 1
    assert history[0].val_loss is not None
    assert [call[0] for call in recorder.calls].count("batch") == (1 if moment == "on_train_batch_end" else 2)
    assert len(classifier.fit(*digits, epochs=2, verbose=0)) == 2


def test_early_stopping_keeps_the_best_weights(digits: tuple[Tensor, Tensor]) -> None:
    classifier = small().compile("sgd", lr=0.05)
    best: list[tuple[float, list[Tensor]]] = []

    def note(result: EpochResult) -> None:
        assert result.val_loss is not None
        best.append((result.val_loss, weights(classifier)))
        if len(best) == 2:  # the weights become worse, and stay so
            with torch.no_grad():
                classifier.model.get_submodule("dense2").weight.copy_(torch.tensor([[9.0], [-9.0]]))
            assert classifier.optimizer is not None
            classifier.optimizer.param_groups[0]["lr"] = 0.0

    stopping = EarlyStopping(patience=2, restore_best_weights=True)
    history = classifier.fit(*digits, epochs=30, validation_split=0.5, verbose=0, callbacks=[stopping, note])
    losses = [loss for loss, _ in best]
    chosen = losses.index(min(losses))
    assert (chosen, stopping.stopped_epoch, len(history)) == (1, 3, 4)
    assert same(weights(classifier), best[chosen][1])


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: EarlyStopping(), "watches 'val_loss', but there are only loss, accuracy: pass validation_split"),
        (lambda: EarlyStopping("los", mode="min"), "there are only loss, accuracy$"),
        (lambda: ModelCheckpoint("m.pt", save_best_only=True), "ModelCheckpoint watches 'val_loss'"),
        (lambda: ModelCheckpoint("{val_loss}.pt"), "a field that cannot be filled"),
    ],
)
def test_a_callback_that_lacks_its_figure_is_refused_before_the_training(
    digits: tuple[Tensor, Tensor], callback: Callable[[], Callback], message: str
) -> None:
    classifier = small()
    before = weights(classifier)
    with pytest.raises(TrainingError, match=message):
        classifier.fit(*digits, verbose=0, callbacks=[callback()])
    assert same(weights(classifier), before)
    with pytest.raises(ValueError, match="pass mode='min' or mode='max'"):
        EarlyStopping("val_auc")


def test_model_checkpoints_are_written_after_epochs_or_improvements(
    digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    classifier = small()
    every = ModelCheckpoint(tmp_path / "{epoch:02d}.pt")
    best = ModelCheckpoint(tmp_path / "best.pt", "val_accuracy", save_best_only=True)
    classifier.fit(*digits, epochs=2, validation_split=0.5, verbose=0, callbacks=[every, best])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01.pt", "02.pt", "best.pt"]
    assert same(weights(Classifier.load(tmp_path / "02.pt")), weights(classifier))
    own = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), SHAPE, 2)
    with pytest.raises(TrainingError, match="only networks with a name or a list of layers can be saved"):
        own.fit(*digits, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "own.pt")])
    own.fit(*digits, epochs=1, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "own.pt", save_weights_only=True)])
    assert (tmp_path / "own.pt").exists()


def test_an_interrupted_fit_keeps_its_history(digits: tuple[Tensor, Tensor]) -> None:
    def interrupt(result: EpochResult) -> None:
        if result.epoch == 2:
            raise KeyboardInterrupt

    classifier = small()
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(*digits, epochs=5, verbose=0, callbacks=[interrupt])
    assert len(classifier.history) == 2
    with pytest.raises(Diverged, match="diverged in epoch 1: try a learning rate below 1e"):
        small().compile("sgd", lr=1e30).fit(*digits, verbose=0)


# evaluate


def test_scores_unpack_into_numbers_and_have_names(digits: tuple[Tensor, Tensor], capsys: Output) -> None:
    def top1(probabilities: Tensor, labels: Tensor) -> Tensor:
        return (probabilities.argmax(1) == labels).double().mean()

    classifier = small().compile(metrics=["acc", top1])
    scores = classifier.evaluate(*digits, verbose=2)
    assert capsys.readouterr().out.startswith("loss ")
    loss, accuracy, third = scores
    assert all(isinstance(number, float) for number in scores)
    assert (scores.loss, scores["accuracy"], scores.top1) == (loss, accuracy, third)
    assert accuracy == third
    assert dict(scores) == classifier.evaluate(*digits, return_dict=True)
    assert repr(scores) == f"Scores(loss={loss:.4f}, accuracy={accuracy:.4f}, top1={third:.4f})"
    assert pickle.loads(pickle.dumps(scores)) == copy.deepcopy(scores) == scores
    assert pickle.loads(pickle.dumps(scores)).loss == loss
    with pytest.raises(KeyError, match="there is no 'auc': there are loss, accuracy, top1"):
        scores["auc"]
    with pytest.raises(AttributeError):
        scores.auc  # noqa: B018
    assert classifier.evaluate(*digits, batch_size=7) == pytest.approx(scores)


def test_predictions_can_be_changed_in_place(digits: tuple[Tensor, Tensor]) -> None:
    probabilities = small().predict(digits[0])
    probabilities[0] = 1
    probabilities.requires_grad_()


# summary, repr, save and load


def test_the_summary_lists_the_layers_with_shapes_and_parameters(capsys: Output) -> None:
    classifier = Classifier("conv4, bn, pool, dense8, tanh", SHAPE, 2)
    classifier.model.train()
    assert classifier.summary() is None
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert table == [
        ["conv1 (Conv2d)", "(N, 4, 6, 6)", "40"],
        ["bn2 (_BatchNorm2d)", "(N, 4, 6, 6)", "8"],
        ["bn2_relu (ReLU)", "(N, 4, 6, 6)", "0"],
        ["pool4 (MaxPool2d)", "(N, 4, 3, 3)", "0"],
        ["flatten (Flatten)", "(N, 36)", "0"],
        ["dense1 (Linear)", "(N, 8)", "296"],
        ["dense1_tanh (Tanh)", "(N, 8)", "0"],
        ["dense2 (Linear)", "(N, 2)", "18"],
    ]
    assert "Parameters: 362 (1.4 KB)" in lines
    assert all(module.training for module in classifier.model.modules())
    assert repr(classifier) == (
        "Classifier(conv4, bn, pool, dense8, tanh: images (1, 8, 8), 2 classes, 362 parameters)"
    )
    assert "bn2_relu" in classifier._repr_html_()


def test_a_saved_classifier_loads_as_it_was(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    classifier = small(class_names=("cat", "dog")).compile("rmsprop", "mse", schedule="cosine", label_smoothing=0.1)
    classifier.fit(*digits, epochs=1, verbose=0)
    path = tmp_path / "model.pt"
    for _ in range(2):  # the second call replaces the file of the first
        classifier.save(path)
    for backend in (None, "torch"):
        loaded = Classifier.load(path, backend)
        assert loaded.class_names == ("cat", "dog")
        assert repr(loaded) == repr(classifier)
        assert loaded.evaluate(*digits) == pytest.approx(classifier.evaluate(*digits))
        loaded.fit(*digits, epochs=1, verbose=0)
    assert checkpoint.load(path).config["schedule"] == "cosine"


def test_a_classifier_compiled_with_functions_must_be_compiled_after_loading(
    digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    small().compile(loss=nn.CrossEntropyLoss()).save(tmp_path / "model.pt")
    loaded = Classifier.load(tmp_path / "model.pt")
    assert loaded.predict(digits[0]).shape == (120, 2)
    for method in (loaded.fit, loaded.evaluate):
        with pytest.raises(TrainingError, match=r"call compile\(\) first"):
            method(*digits)
    loaded.compile().fit(*digits, epochs=1, verbose=0)
    small().save(tmp_path / "model.pt")  # never compiled: the defaults apply
    Classifier.load(tmp_path / "model.pt").fit(*digits, epochs=1, verbose=0)


def test_saving_replaces_only_files_of_fastconv(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    classifier, path = small(), tmp_path / "mine.txt"
    path.write_text("mine")
    for save in (classifier.save, classifier.save_weights):
        with pytest.raises(OutputError, match="is not a file of fastconv: choose another path, or pass overwrite=True"):
            save(path)
        with pytest.raises(OutputError, match="cannot write"):
            save(tmp_path / "missing" / "model.pt")
    assert path.read_text() == "mine"
    classifier.save(path, overwrite=True)
    Classifier.load(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"mine\.txt is not a checkpoint, or is truncated"):
        Classifier.load(path)


def test_weights_of_any_module_are_saved_and_loaded(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    def own(classes: int = 2) -> Classifier:
        network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, classes))
        return Classifier(network, SHAPE, classes)

    classifier, path = own(), tmp_path / "weights.pt"
    classifier.fit(*digits, epochs=1, verbose=0)
    classifier.save_weights(path)
    fresh = own()
    fresh.load_weights(path)
    assert same(weights(fresh), weights(classifier))
    before = weights(small())
    other = small()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        other.load_weights(path)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        own(3).load_weights(path)
    assert same(weights(other), before)
    other.save(tmp_path / "model.pt")
    again = small()
    again.load_weights(tmp_path / "model.pt")
    assert same(weights(again), before)
    for content in (3, {"state_dict": 3}, {"state_dict": {"a": torch.full((2,), torch.nan)}}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"not a file of weights|does not fit"):
            fresh.load_weights(path)


def test_a_data_set_shows_a_line_per_part() -> None:
    images, labels = torch.rand(3, 3, 4, 4), torch.arange(3)
    shown = repr(data.DataSet("tiny", images, labels, images[:1], labels[:1], tuple(map(str, range(100)))))
    assert shown.splitlines() == [
        "DataSet 'tiny', 100 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...",
        "  train: 3 images (3, 4, 4), float32",
        "  test: 1 images (3, 4, 4), float32",
    ]
