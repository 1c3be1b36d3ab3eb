"""Trains an autoencoder on windows of sensor data, and saves it for the exporter.

The data are an .npy file of windows x steps x channels. What the network cannot reproduce, after
it has seen normal windows alone, is an anomaly.
"""

import argparse

import keras
import numpy as np


def build(steps: int, channels: int) -> keras.Model:
    """Returns a network that squeezes a window into sixteen numbers, and draws it again."""
    window = keras.Input((steps, channels), name="window")
    x = keras.layers.Flatten()(window)
    for units in (256, 64, 16, 64, 256):
        x = keras.layers.Dense(units, activation="gelu" if units > 16 else "linear")(x)
    x = keras.layers.Dense(steps * channels)(x)
    return keras.Model(window, keras.layers.Reshape((steps, channels), name="drawn")(x), name="ae")


def main() -> None:
    """Reads the arguments, trains, and saves the model and its data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("windows", help=".npy file of windows x steps x channels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="autoencoder.keras")
    parser.add_argument("--data", default="windows.npz", help="file for the normalized windows")
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    windows = np.load(given.windows).astype("float32")
    windows = (windows - windows.mean((0, 1))) / windows.std((0, 1))
    test = len(windows) // 5
    held_out, learned = windows[:test], windows[test:]
    model = build(*windows.shape[1:])
    model.compile("adam", "mse")
    model.fit(
        learned, learned, epochs=given.epochs, validation_data=(held_out, held_out), verbose=2
    )
    model.save(given.output)
    # The windows are the labels, too: the exporter measures the squared error by them.
    np.savez(given.data, x_train=learned, y_train=learned, x_test=held_out, y_test=held_out)


if __name__ == "__main__":
    main()
