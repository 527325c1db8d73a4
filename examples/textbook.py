"""The five steps of a textbook's chapter on handwritten digits: load, build, train, evaluate, predict.

It needs the extra classifier: see README.md.

    python examples/textbook.py

MNIST_DATASET: "mnist" after `fastconv download mnist`, default "mnist5k". MNIST_LIMIT: number of training images.
MNIST_EPOCHS: default 5. MNIST_OUTPUT: the folder of the pictures, default the current one.
"""

import os
from pathlib import Path

import numpy as np

from fastconv.classifier import Classifier, EarlyStopping, data, plots

output = Path(os.environ.get("MNIST_OUTPUT", "."))
output.mkdir(parents=True, exist_ok=True)

# 1. Load the images. They are scaled to [0, 1]; arrays of uint8 from 0 to 255 would do as well.
digits = data.load(os.environ.get("MNIST_DATASET", "mnist5k"))
print(digits)
limit = int(os.environ.get("MNIST_LIMIT", len(digits.train_images)))
x_train, y_train = digits.train_images[:limit].numpy(), digits.train_labels[:limit].numpy()
x_test, y_test = digits.test_images.numpy(), digits.test_labels.numpy()

# 2. Build the network, and choose how it learns.
model = Classifier("conv32, pool, conv64, pool, conv128, dense128", shape=(1, 28, 28), classes=10)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.summary()

# 3. Train it.
epochs = int(os.environ.get("MNIST_EPOCHS", 5))
stopping = EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True)
history = model.fit(x_train, y_train, epochs=epochs, batch_size=64, validation_split=0.2, callbacks=[stopping])
plots.training_curves(history, path=output / "curves.png")

# 4. Evaluate it on images that it has not seen.
test_loss, test_acc = model.evaluate(x_test, y_test)
print(f"test accuracy {test_acc:.4f}, loss {test_loss:.4f}")

# 5. Predict, and look at the predictions: blue is correct, red is wrong.
predictions = model.predict(x_test)
for i in range(5):
    print(f"image {i}: {np.argmax(predictions[i])} ({100 * np.max(predictions[i]):.0f} %), label {y_test[i]}")
plots.prediction_grid(x_test[:15], y_test[:15], predictions[:15], path=output / "predictions.png")
plots.confusion_matrix(y_test, predictions, path=output / "confusion.png")
plots.worst_mistakes(x_test, y_test, predictions, path=output / "mistakes.png")

model.save(output / "digits.pt")
print(f"wrote four pictures and digits.pt to {output.resolve()}")
