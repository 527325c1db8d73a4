"""Train a deep CNN on MNIST with Keras, as in a textbook.

The program does not mention fastconv. With Keras's torch backend, enabled.py runs it with fastconv:

    pip install keras
    KERAS_BACKEND=torch python examples/keras_mnist.py                      # PyTorch's operators
    KERAS_BACKEND=torch python examples/enabled.py examples/keras_mnist.py  # fastconv's

MNIST_NPZ: path of a local mnist.npz, else Keras downloads it. MNIST_LIMIT: number of images. MNIST_EPOCHS: default 5.
"""

import os

import keras
import numpy as np
from keras import layers

path = os.environ.get("MNIST_NPZ")
if path:
    with np.load(path) as arrays:
        (x_train, y_train), (x_test, y_test) = [(arrays[f"x_{s}"], arrays[f"y_{s}"]) for s in ("train", "test")]
else:
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
limit = int(os.environ.get("MNIST_LIMIT", len(x_train)))

x_train = x_train[:limit].reshape(-1, 28, 28, 1).astype("float32") / 255
x_test = x_test[:limit].reshape(-1, 28, 28, 1).astype("float32") / 255
y_train = keras.utils.to_categorical(y_train[:limit], 10)
y_test = keras.utils.to_categorical(y_test[:limit], 10)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, (3, 3), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(64, (3, 3), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(128, (3, 3), activation="relu"),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, epochs=int(os.environ.get("MNIST_EPOCHS", 5)), batch_size=64, validation_split=0.2)

loss, accuracy = model.evaluate(x_test, y_test)
print(f"test accuracy {accuracy:.4f}, loss {loss:.4f}")
probabilities = model.predict(x_test[:5])
print("predicted", probabilities.argmax(1), "labels", y_test[:5].argmax(1))
