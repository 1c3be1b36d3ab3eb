"""The data sets that are known by name; the embedded one lies in this folder."""

DIGITS = "digits"
NO_DATA = "none"
KERAS_DATASETS = ("mnist", "fashion_mnist")
