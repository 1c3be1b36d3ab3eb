"""The picture of the curves."""

import numpy as np
import pytest

from exporter.report.curves import draw_curves
from exporter.training.loop import Epoch, History


def history(name, accuracies, losses):
    epochs = [
        Epoch(n, None if n == 0 else 1.0 / n, loss, accuracy, 1e-3, float(n))
        for n, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    return History(name, tuple(epochs), 1, "finished", 10, 3.0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "phases",
    [
        [history("factored", [0.5, 0.7, 0.8], [1.0, 0.8, 0.7])],
        [history("factored", [None, None], [1.0, 0.8])],
        [history("factored", [None, None], [None, None])],
        [history(n, [0.5, 0.7], [1.0, 0.8]) for n in ("projected", "factored")],
    ],
)
def test_is_a_picture_with_something_on_it(phases, tmp_path):
    from matplotlib.image import imread

    file = tmp_path / "training.png"
    draw_curves(phases, file)
    pixels = imread(file)
    assert pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
