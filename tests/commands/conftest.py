"""What runs, exports and verifications share."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def arrays():
    """Dark and bright images."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    images = rng.integers(0, 128, (60, 8, 8)) + 128 * y[:, np.newaxis, np.newaxis]
    return {"x": images.astype(np.uint8), "y": y}


@pytest.fixture(scope="session")
def model(arrays):
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="image"),
            layers.Flatten(),
            layers.Dense(48, activation="relu", bias_initializer="normal", name="hidden"),
            layers.Dense(48, activation="relu", bias_initializer="normal", name="deep"),
            layers.Dense(2, activation="softmax", name="probabilities"),
        ],
        name="little",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(arrays["x"] / 255, arrays["y"], epochs=8, batch_size=4, verbose=0)
    return model
