"""Teaches a MobileNetV2 the classes of a folder of images, and saves it for the exporter.

The folder has one folder for each class. With ``--weights imagenet``, Keras downloads what the
network knows already: a new head is trained on it first, then all of it at a low learning rate.
With ``--weights none``, where nothing can be downloaded, it learns from scratch.
"""

import argparse

import keras


def build(classes: int, side: int, weights: str | None) -> tuple[keras.Model, keras.Model]:
    """Returns the model, which takes pixels of 0 to 255, and its body."""
    image = keras.Input((side, side, 3), name="image")
    body = keras.applications.MobileNetV2(
        image.shape[1:], alpha=0.35, include_top=False, pooling="avg", weights=weights
    )
    pixels = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    # Batch normalizations that are trained already keep their statistics.
    features = body(pixels, training=False if weights else None)
    features = keras.layers.Dropout(0.2)(features)
    scores = keras.layers.Dense(classes, activation="softmax", name="classes")(features)
    return keras.Model(image, scores, name="mobilenet"), body


def train(model: keras.Model, images, epochs: int, rate: float) -> None:
    loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
    model.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
    model.fit(images, epochs=epochs, verbose=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", help="folder with one folder for each class")
    parser.add_argument("--weights", choices=["imagenet", "none"], default="imagenet")
    parser.add_argument("--side", type=int, default=96, help="pixels, a multiple of 32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default="mobilenet.keras")
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    size = (given.side, given.side)
    images = keras.utils.image_dataset_from_directory(given.images, image_size=size, seed=0)
    weights = given.weights if given.weights != "none" else None
    model, body = build(len(images.class_names), given.side, weights)
    if weights is None:
        for layer in body.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9  # That of the network, 0.999, is for a million images.
        train(model, images, given.epochs, 1e-3)
    else:
        body.trainable = False
        train(model, images, given.epochs, 1e-3)
        body.trainable = True
        train(model, images, given.epochs, 1e-5)
    model.save(given.output)


if __name__ == "__main__":
    main()
