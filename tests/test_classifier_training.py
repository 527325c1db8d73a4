from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import fastconv.nn
from fastconv.classifier import augment, checkpoint, data, evaluation, files
from fastconv.classifier import config as configuration
from fastconv.classifier.checkpoint import Checkpoint, CheckpointError
from fastconv.classifier.config import TrainingConfig, TrainingError
from fastconv.classifier.data.images import read_digit
from fastconv.classifier.estimator import Classifier
from fastconv.classifier.fit import Totals, Training, fit
from fastconv.classifier.history import EpochResult
from fastconv.classifier.networks import build_model


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The first 320 training images and their labels."""
    mnist5k = data.load("mnist5k")
    return mnist5k.train_images[:320], mnist5k.train_labels[:320]


def weights(model: torch.nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize("model", configuration.MODELS)
def test_training_lowers_the_loss(digits: tuple[Tensor, Tensor], model: str) -> None:
    _, history = fit(*digits, TrainingConfig(model=model, epochs=4))
    assert history[-1].loss < 0.8 * history[0].loss
    assert history[-1].val_accuracy is not None
    assert history[-1].val_accuracy > 0.4


@pytest.mark.parametrize("backend", configuration.BACKENDS)
def test_the_same_seed_gives_the_same_weights(digits: tuple[Tensor, Tensor], backend: str) -> None:
    config = TrainingConfig(epochs=1, backend=backend, seed=7)
    first, _ = fit(*digits, config)
    torch.rand(3)  # earlier random numbers must not matter
    second, _ = fit(*digits, config)
    assert all(map(torch.equal, weights(first), weights(second)))
    other, _ = fit(*digits, TrainingConfig(epochs=1, backend=backend, seed=8))
    assert not torch.equal(weights(first)[0], weights(other)[0])


def test_both_backends_train_alike(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    ours, torchs = (
        fit(images, labels, TrainingConfig(epochs=1, backend=backend))[1][0] for backend in configuration.BACKENDS
    )
    assert ours.loss == pytest.approx(torchs.loss, abs=1e-3)


def test_the_backend_chooses_the_layers() -> None:
    ours, torchs = (build_model("mnist-cnn", backend) for backend in configuration.BACKENDS)
    assert type(ours.get_submodule("conv1")) is fastconv.nn.ConvReLUMaxPool2d
    assert isinstance(torchs.get_submodule("conv1"), torch.nn.Conv2d)
    assert not isinstance(torchs.get_submodule("conv1"), fastconv.nn.Conv2d)
    assert ours.state_dict().keys() == torchs.state_dict().keys()


def test_each_training_image_is_seen_once_an_epoch(digits: tuple[Tensor, Tensor]) -> None:
    # The learning rate is too small to change a weight, so all epochs evaluate the same network.
    images, labels = digits
    model, history = fit(images, labels, TrainingConfig(epochs=2, lr=1e-30, batch_size=48))
    loss, accuracy = evaluation.evaluate(model, images[:256], labels[:256])
    for result in history:
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.accuracy == pytest.approx(accuracy)


def test_the_order_changes_from_epoch_to_epoch(digits: tuple[Tensor, Tensor]) -> None:
    first_losses: list[float] = []

    def note(epoch: int, totals: Totals) -> None:
        if totals.images == 64:
            first_losses.append(totals.loss.item())

    fit(*digits, TrainingConfig(epochs=2, lr=1e-30), on_step=note)
    assert first_losses[0] != pytest.approx(first_losses[1], rel=1e-4)


def test_the_last_images_are_held_out_for_validation(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    config = TrainingConfig(epochs=1, validation_split=0.25)
    model, (result,) = fit(images, labels, config)
    assert (result.val_loss, result.val_accuracy) == evaluation.evaluate(model, images[240:], labels[240:])
    disturbed = torch.cat([images[:240], torch.rand(80, 1, 28, 28)])
    other, _ = fit(disturbed, labels, config)
    assert all(map(torch.equal, weights(model), weights(other)))


def test_without_a_split_there_is_no_validation(digits: tuple[Tensor, Tensor]) -> None:
    steps: list[Totals] = []
    epochs: list[EpochResult] = []
    _, history = fit(
        *digits, TrainingConfig(epochs=1, validation_split=0), lambda epoch, totals: steps.append(totals), epochs.append
    )
    assert history == epochs
    assert history[0].val_loss is None
    assert [totals.images for totals in steps] == [64, 128, 192, 256, 320]
    assert history[0].loss == steps[-1].loss.item() / 320
    assert history[0].images_per_second == pytest.approx(320 / history[0].seconds)


def test_evaluate_returns_the_mean_over_all_images(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (torch.cat([part, part, part])[:701] for part in digits)  # more than one batch of evaluate
    model = build_model("mnist-cnn")
    logits = model(images)
    loss, accuracy = evaluation.evaluate(model, images, labels)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    torch.testing.assert_close(evaluation.predict(model, images), logits.detach().softmax(1))


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"batch_size": "64"},
        {"seed": 1.0},
        {"patience": 1.5},
        {"batch_size": 0},
        {"validation_split": 1.0},
        {"validation_split": -0.1},
        {"validation_split": math.nan},
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"seed": -1},
        {"seed": 2**63},
        {"model": "resnet"},
        {"backend": "jax"},
        {"schedule": "exponential"},
        {"augment": "mirror"},
        {"label_smoothing": 1.0},
        {"label_smoothing": math.nan},
        {"optimizer": "lbfgs"},
        {"loss": "hinge"},
        {"patience": 0},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=str(next(iter(values.values()))).replace("+", r"\+")):
        TrainingConfig(**values)


def test_a_training_that_diverges_says_so(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TrainingError, match="diverged in epoch 1: try a learning rate below"):
        fit(*digits, TrainingConfig(epochs=1, lr=1e30))


@pytest.mark.parametrize("recipe", configuration.RECIPES)
def test_every_recipe_is_a_valid_configuration(recipe: str) -> None:
    TrainingConfig(**configuration.RECIPES[recipe])


@pytest.mark.parametrize("schedule", configuration.SCHEDULES)
def test_the_learning_rate_follows_the_schedule(digits: tuple[Tensor, Tensor], schedule: str) -> None:
    rates: list[float] = []
    config = TrainingConfig(epochs=2, schedule=schedule, lr=0.01)
    run = Training(*digits, config)
    run.run(lambda epoch, totals: rates.append(run.state_dict()["optimizer"]["param_groups"][0]["lr"]))
    shares = [i / 8 for i in range(8)]  # two epochs of 4 batches: 256 images
    expected = {
        "constant": [0.01] * 8,
        "cosine": [0.005 * (1 + math.cos(math.pi * share)) for share in shares],
        "one-cycle": [0.001, 0.006625, *(0.01 * (1 - share) / 0.8 for share in shares[2:])],
    }
    assert rates == pytest.approx(expected[schedule])


@pytest.mark.parametrize("moved", ["shift", "affine"])
@pytest.mark.parametrize("after", [1, 4, 6])  # steps: within the first epoch, at its end, within the second
def test_a_resumed_training_gives_the_same_weights(digits: tuple[Tensor, Tensor], moved: str, after: int) -> None:
    model = "conv8, pool, dropout.3, dense16"
    config = TrainingConfig(model, epochs=2, seed=3, augment=moved, schedule="one-cycle", label_smoothing=0.1)
    whole, history = fit(*digits, config)

    first, steps = Training(*digits, config), []

    def count(epoch: int, totals: Totals) -> None:
        steps.append(epoch)
        if len(steps) == after:
            first.stop()

    first.run(count)
    assert len(steps) == after
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    torch.rand(5)
    second = Training(*digits, config)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    second.run()
    assert second.done
    assert all(map(torch.equal, weights(second.model), weights(whole)))
    assert [(r.loss, r.accuracy, r.val_loss) for r in second.history] == [
        (r.loss, r.accuracy, r.val_loss) for r in history
    ]


def test_each_process_draws_its_own_random_numbers_also_after_resuming(digits: tuple[Tensor, Tensor]) -> None:
    config = TrainingConfig("conv8, pool, dropout.5", epochs=2, validation_split=0)

    def in_process(rank: int, state: dict[str, Any] | None = None) -> Training:
        process = Training(*digits, config)
        process._distributed.rank = rank
        if state is not None:
            process.load_state_dict(state)
        return process

    first, second = in_process(0), in_process(1)
    for process in (first, second):
        process.run(on_epoch=lambda result, process=process: process.stop())  # type: ignore[misc]
    assert not torch.equal(weights(first.model)[0], weights(second.model)[0])
    # The state is saved by process 0, with its rng.
    state = copy.deepcopy(second.state_dict()) | {"rng": torch.Generator().manual_seed(9).get_state()}
    second.run()
    again = in_process(1, state)
    again.run()
    assert all(map(torch.equal, weights(again.model), weights(second.model)))
    sums = [128, 128, torch.tensor(300.0), torch.tensor(20)]
    in_process(1, state | {"steps": 2, "seconds": 0.1, "totals": sums})  # within an epoch
    assert not torch.equal(torch.get_rng_state(), state["rng"])


def test_progress_counts_the_images_of_all_processes(digits: tuple[Tensor, Tensor]) -> None:
    config = TrainingConfig("conv4, pool", batch_size=319, validation_split=0)
    for rank, own in ((0, [160, 161]), (1, [159, 159])):
        seen: list[Totals] = []
        process = Training(*digits, config)
        process._distributed.rank, process._distributed._count = rank, 2

        def note(epoch: int, totals: Totals, process: Training = process, seen: list[Totals] = seen) -> None:
            seen.append(totals)
            if len(seen) == 2:
                process.stop()

        process._run_epoch(note)
        assert [totals.images for totals in seen] == [319, 320]  # the last batch is one image, too small to be shared
        assert [totals.own for totals in seen] == own


def test_fit_does_not_change_the_global_random_state(digits: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    fit(*digits, TrainingConfig("conv4, pool", epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    classifier = Classifier("conv4, pool, dropout.2")
    before = torch.get_rng_state()
    classifier.fit(*digits, epochs=1, verbose=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_ends_when_the_validation_loss_stops_falling(digits: tuple[Tensor, Tensor]) -> None:
    _, history = fit(*digits, TrainingConfig(epochs=30, lr=0.01, patience=2))
    losses = [result.val_loss or 0 for result in history]
    assert len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3
    with pytest.raises(TrainingError, match="patience needs validation images"):
        fit(*digits, TrainingConfig(patience=1, validation_split=0))


def test_a_training_resumed_with_fewer_epochs_than_it_has_is_done(digits: tuple[Tensor, Tensor]) -> None:
    longer, shorter = (Training(*digits, TrainingConfig(epochs=epochs)) for epochs in (2, 1))
    longer.run()
    shorter.load_state_dict(longer.state_dict())
    assert shorter.done


def test_a_network_too_large_for_memory_is_reported_in_one_line() -> None:
    with pytest.raises(TrainingError, match=r"^no memory for 'dense9999999, dense9999999': [^\n]*$"):
        build_model("dense9999999, dense9999999")


@pytest.mark.parametrize("optimizer", configuration.OPTIMIZERS)
@pytest.mark.parametrize("loss", configuration.LOSSES)
def test_every_optimizer_lowers_every_loss(digits: tuple[Tensor, Tensor], optimizer: str, loss: str) -> None:
    lr = {"adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "sgd": 0.05}[optimizer] * (
        40 if (optimizer, loss) == ("sgd", "mse") else 1
    )
    _, history = fit(*digits, TrainingConfig(epochs=8, optimizer=optimizer, loss=loss, lr=lr))
    assert history[-1].loss < 0.9 * history[0].loss
    assert history[-1].accuracy > history[0].accuracy


def test_the_mean_squared_error_compares_probabilities(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    model, (result,) = fit(images, labels, TrainingConfig(epochs=1, lr=1e-30, loss="mse"))
    wanted = torch.eye(10)[labels]
    errors = (evaluation.predict(model, images) - wanted).square().mean(1)
    assert result.loss == pytest.approx(errors[:256].mean().item(), rel=1e-5)
    assert result.val_loss == pytest.approx(errors[256:].mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", configuration.DTYPES)
def test_every_dtype_trains(digits: tuple[Tensor, Tensor], dtype: str) -> None:
    model, history = fit(*digits, TrainingConfig(epochs=2, dtype=dtype))
    assert history[1].loss < history[0].loss
    expected = torch.float64 if dtype == "float64" else torch.float32
    assert {weight.dtype for weight in weights(model)} == {expected}
    assert evaluation.predict(model, digits[0]).dtype == expected


# The classifier


def top2(probabilities: Tensor, labels: Tensor) -> float:
    return (probabilities.topk(2).indices == labels[:, None]).any(1).double().mean().item()


def test_the_classifier_gives_the_weights_of_fit(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(0)  # the default seed of fit
    classifier = Classifier().compile(metrics={"top2": top2}, label_smoothing=0.1)
    history = classifier.fit(images, labels, epochs=2, validation_split=0.25, verbose=0)
    config = TrainingConfig(epochs=2, validation_split=0.25, label_smoothing=0.1)
    model, expected = fit(images, labels, config)
    assert all(map(torch.equal, weights(classifier.model), weights(model)))
    assert [result.val_loss for result in history] == [result.val_loss for result in expected]
    figures = classifier.evaluate(images, labels)
    loss, accuracy = evaluation.evaluate(model, images, labels)
    expected_top2 = top2(evaluation.predict(model, images), labels)
    assert dict(figures) == {"loss": loss, "accuracy": accuracy, "top2": expected_top2}


def test_the_classifier_continues_from_its_weights_and_accepts_arrays(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    pixels, one_hot = (images[:, 0] * 255).round().byte().numpy(), torch.eye(10)[labels].numpy()
    classifier = Classifier("conv8, pool, dense32").compile(loss="mse", lr=0.01, metrics=["accuracy"])
    first = classifier.fit(pixels, one_hot, epochs=2, validation_data=(pixels[:50], labels[:50].numpy()), verbose=0)
    second = classifier.fit(images, labels, epochs=1, verbose=0)
    assert first[1].val_loss is not None
    assert second[0].val_loss is None
    assert second[0].loss < first[1].loss < first[0].loss
    torch.testing.assert_close(torch.from_numpy(classifier.predict(pixels)), classifier.predict(images))


def test_the_classifier_trains_any_given_module() -> None:
    images, labels = torch.rand(60, 3, 4, 4), torch.arange(60) % 2
    images[labels == 1] *= 0.2
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    classifier = Classifier(own, shape=(3, 4, 4), classes=2).compile("sgd", lr=0.1)
    classifier.fit(images, labels, epochs=20, batch_size=10, verbose=0)
    assert classifier.model is own
    assert classifier.evaluate(images, labels)["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 1, 27, 28), torch.zeros(4).long(), r"the shape \(N, 1, 28, 28\) or .* not \(4, 1, 27, 28\)"),
        (torch.rand(0, 1, 28, 28), torch.zeros(0).long(), "with N at least 1"),
        (torch.rand(4, 1, 28, 28), torch.zeros(3).long(), "labels must be 4 integers or one-hot rows"),
        (torch.rand(4, 1, 28, 28), torch.zeros(4), r"not torch.float32 of \(4,\)"),
        (torch.rand(4, 1, 28, 28), torch.full((4,), 10), "labels must be 0 to 9, not 10 to 10"),
        (torch.rand(4, 1, 28, 28), torch.full((4, 10), 0.1), "must be one-hot"),
        (torch.full((4, 1, 28, 28), 255), torch.zeros(4).long(), "floats in .* or uint8, not torch.int64"),
    ],
)
def test_the_classifier_refuses_images_and_labels_that_do_not_fit(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Classifier("conv4, pool").compile().fit(images, labels)


def test_the_classifier_refuses_unknown_and_misplaced_settings() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        Classifier("conv4, pool").compile(momentum=0.5)
    with pytest.raises(TypeError, match=r"epochs is not a setting of compile\(\): give it to fit\(\)"):
        Classifier("conv4, pool").compile(epochs=3)
    with pytest.raises(TypeError, match=r"backend is not a setting of compile\(\): give it to Classifier\(\)"):
        Classifier("conv4, pool").compile(backend="torch")
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        Classifier("conv4, pool").compile(metrics=["accuracy", "auc"])
    images, labels = torch.rand(4, 1, 28, 28), torch.zeros(4).long()
    with pytest.raises(TypeError, match="validation_data or validation_split, not both"):
        Classifier("conv4, pool").fit(images, labels, validation_data=(images, labels), validation_split=0.5)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        Classifier("conv4, pool").compile(loss="hinge")


# Augmentation


def test_shifted_images_are_the_images_moved() -> None:
    images = torch.rand(200, 3, 9, 7) + 1
    generator = torch.Generator().manual_seed(1)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, result in zip(padded, augment.shift(images, generator), strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image[:, i : i + 9, j : j + 7], result)]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25


def test_affine_moves_a_little_and_keeps_the_values() -> None:
    images = torch.zeros(300, 1, 28, 28)
    images[:, :, 12:16, 12:16] = 1
    moved = augment.affine(images, torch.Generator().manual_seed(1))
    assert moved.min() >= 0
    assert moved.max() <= 1
    mass = moved.sum((1, 2, 3))
    assert ((mass - 16).abs() < 16 * 0.25).all()  # each side changes by at most a tenth
    pixels = torch.arange(28) + 0.5
    rows, columns = (moved.sum((1, 3)) * pixels).sum(1) / mass, (moved.sum((1, 2)) * pixels).sum(1) / mass
    for centre in (rows, columns):
        assert (centre - 14).abs().max() < 2.5  # a shift of 2 divided by the smallest scale, and the rotation's part
        assert centre.std() > 0.8


def test_affine_with_random_numbers_of_one_half_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, generator, dtype: torch.full(size, 0.5, dtype=dtype))
    images = torch.empty(4, 2, 11, 6).uniform_(generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(augment.affine(images, torch.Generator()), images)


def test_flipped_images_are_the_shifted_images_or_their_mirror_images() -> None:
    images = torch.rand(400, 3, 9, 7)
    before = images.clone()
    flipped = augment.flip(images, torch.Generator().manual_seed(1))
    shifted = augment.shift(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    plain = (flipped == shifted).flatten(1).all(1)
    mirrored = (flipped == shifted.flip(3)).flatten(1).all(1)
    assert (plain ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_augmentations_draw_from_the_generator() -> None:
    images = torch.rand(64, 1, 28, 28)
    for function in (augment.shift, augment.affine, augment.flip):
        first, second, third = (function(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


# Checkpoints


def new_checkpoint(model: str = "mnist-cnn") -> Checkpoint:
    return Checkpoint(model, build_model(model).state_dict(), 0.5, {"seed": 3})


@pytest.mark.parametrize("model", configuration.MODELS)
def test_a_checkpoint_loads_as_it_was_saved(tmp_path: Path, model: str) -> None:
    path = tmp_path / "checkpoint.pt"
    saved = new_checkpoint(model)
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert (loaded.model, loaded.test_accuracy, loaded.config) == (model, 0.5, {"seed": 3})
    for backend in configuration.BACKENDS:
        assert all(map(torch.equal, weights(loaded.build(backend)), saved.state_dict.values()))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_format_1_is_for_digits(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, new_checkpoint())
    content = torch.load(path)
    torch.save({k: v for k, v in content.items() if k not in ("shape", "class_names")} | {"version": 1}, path)
    loaded = checkpoint.load(path)
    assert (loaded.shape, loaded.class_names) == ((1, 28, 28), tuple("0123456789"))


def test_a_checkpoint_for_other_images_loads(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = build_model("conv8, pool, dense5", shape=(3, 12, 10), classes=3)
    saved = Checkpoint("conv8, pool, dense5", model.state_dict(), 0.5, {}, (3, 12, 10), ("cat", "dog", "ox"))
    checkpoint.save(path, saved)
    images = torch.rand(4, 3, 12, 10)
    assert torch.equal(checkpoint.load(path).build()(images), model.eval()(images))


def test_a_checkpoint_in_float64_loads_and_predicts(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = build_model("simple-cnn").double()
    checkpoint.save(path, Checkpoint("simple-cnn", model.state_dict(), 0.5))
    images = torch.rand(2, 1, 28, 28)
    found = evaluation.predict(checkpoint.load(path).build("torch"), images)
    torch.testing.assert_close(found, evaluation.predict(model, images))
    assert found.dtype == torch.float64


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def with_weight(value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content | {"state_dict": content["state_dict"] | {"conv1.weight": value}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [1, 2], "not a checkpoint of fastconv"),
        (lambda content: content["state_dict"], "not a checkpoint of fastconv"),
        (lambda content: content | {"version": 3}, r"later version of fastconv \(format 3; this version reads 2\)"),
        (lambda content: content | {"shape": (1, 28)}, "the description of its images is wrong"),
        (lambda content: content | {"shape": (1, 3, 3)}, "'mnist-cnn': .* leaves nothing of an image of 3 x 3"),
        (lambda content: content | {"class_names": "0123456789"}, "the description of its images is wrong"),
        (lambda content: content | {"class_names": ("0", "1")}, "dense2.weight is not torch.float32 of shape"),
        (without("state_dict"), "lacks state_dict"),
        (without("model"), "lacks model"),
        (lambda content: content | {"model": "resnet"}, "a model that cannot be built, 'resnet'"),
        (lambda content: content | {"model": "simple-cnn"}, "weights are not those of simple-cnn"),
        (lambda content: content | {"state_dict": None}, "weights are not those of mnist-cnn"),
        (with_weight(torch.zeros(32, 1, 5, 5)), r"conv1.weight is not torch.float32 of shape \(32, 1, 3, 3\)"),
        (with_weight(torch.zeros(32, 1, 3, 3).half()), "conv1.weight is not torch.float32"),
        (with_weight(torch.zeros(32, 1, 3, 3).double()), "conv1.bias is not torch.float64"),
        (with_weight(3), "conv1.weight is not"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, new_checkpoint())
    torch.save(change(torch.load(path)), path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


class Unsafe:
    """An object whose pickle calls a function when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unsafe",))


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Unsafe()}, "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint, or is damaged"):
        checkpoint.load(Path("checkpoint.pt"))
    assert not Path("unsafe").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, new_checkpoint())
    content = path.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            checkpoint.load(path)
    for start in (100, len(content) // 2):  # in the description of the tensors, and in the weights
        path.write_bytes(content[:start] + bytes(200) + content[start + 200 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(files.OutputError, match=r"cannot write .*file: No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Image files


def test_a_28x28_image_is_read_unchanged_and_a_dark_digit_inverted(
    tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    for index in range(10):
        image = digits[0][index : index + 1]
        grey = Image.fromarray(image[0, 0].mul(255).round().byte().numpy())
        inverted = Image.eval(grey, lambda value: 255 - value)
        see_through = Image.new("RGBA", grey.size, "black")
        see_through.putalpha(grey)  # black ink on a transparent ground
        for variant in (grey, inverted, grey.convert("RGB"), inverted.convert("P"), see_through):
            buffer = tmp_path / "digit.png"
            variant.save(buffer)
            torch.testing.assert_close(read_digit(buffer), image, atol=1.5 / 255, rtol=0)


def test_an_image_of_any_size_is_scaled_and_centred(tmp_path: Path, digits: tuple[Tensor, Tensor]) -> None:
    path = tmp_path / "digit.png"
    likeness = []
    for index in range(10):
        image = digits[0][index]
        grey = Image.fromarray(image[0].mul(255).round().byte().numpy())
        large = Image.new("L", (400, 300), 0)
        large.paste(grey.resize((140, 140)), (230, 20))
        photo = Image.eval(large, lambda value: 200 - value // 2)  # grey paper, grey pen
        wide = Image.new("I;16", (400, 300))
        wide.putdata([value * 257 for value in large.tobytes()])
        for variant in (large, photo, wide):
            variant.save(path)
            result = read_digit(path)
            assert result.shape == (1, 1, 28, 28)
            assert result.min() >= 0
            assert result.max() <= 1
            likeness.append(torch.corrcoef(torch.stack([result.flatten(), image.flatten()]))[0, 1].item())
    # The mean is 0.96, and 0.82 if the digits are centred half a pixel off.
    assert sum(likeness) / len(likeness) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (28, 28), (90, 40)])
@pytest.mark.parametrize("colour", ["black", "white", "grey"])
def test_an_image_without_a_digit_is_no_error(tmp_path: Path, size: tuple[int, int], colour: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "png")
    path = tmp_path / "blank.png"
    path.write_bytes(buffer.getvalue())
    assert read_digit(path).isfinite().all()
