"""What labels mean, and how predictions are held against them."""

import numpy as np
import pytest

from exporter.data.metrics import Metric
from exporter.data.tasks import OutputHint, Task, read_labels
from exporter.errors import DataError

SCORES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]])
COLUMN = np.array([[0.1], [0.9], [0.6], [0.5]])
SIGMOID = OutputHint("bernoulli")
SOFTMAX = OutputHint("categorical")
LOGIT = OutputHint(loss="binary_crossentropy", from_logits=True)
MSE = OutputHint(loss="mean_squared_error")


def read(labels, shape, hint=None):
    task, step = read_labels("Labels", [np.asarray(labels)], shape, hint or OutputHint())
    return task, step(np.asarray(labels))


@pytest.mark.parametrize(
    ("labels", "shape", "hint", "task", "read_as"),
    [
        pytest.param([0, 2, 1], (3,), SOFTMAX, Task(3, 0.5), [0, 2, 1], id="numbers"),
        pytest.param([[0], [2]], (3,), SOFTMAX, Task(3), [0, 2], id="a column of numbers"),
        pytest.param([0.0, 2.0], (3,), SOFTMAX, Task(3), [0, 2], id="floats"),
        pytest.param([1, 3, 2], (3,), SOFTMAX, Task(3, first=1), [0, 2, 1], id="from 1"),
        pytest.param(np.eye(3), (3,), SOFTMAX, Task(3, form="one_hot"), [0, 1, 2], id="one-hot"),
        pytest.param(
            np.eye(3)[[[0, 1], [2, 2]]],
            (2, 3),
            SOFTMAX,
            Task(3, form="one_hot"),
            [[0, 1], [2, 2]],
            id="one-hot tags",
        ),
        pytest.param([[0, 1], [2, 2]], (2, 3), SOFTMAX, Task(3), [[0, 1], [2, 2]], id="tags"),
        pytest.param([[0, 1], [2, 2]], (None, 3), SOFTMAX, Task(3), [[0, 1], [2, 2]], id="free"),
        pytest.param([0, 1, 1], (1,), SIGMOID, Task(2, 0.5), [0, 1, 1], id="yes or no"),
        pytest.param([0.0, 1.0], (1,), SIGMOID, Task(2, 0.5), [0, 1], id="yes or no in floats"),
        pytest.param([0, 1, 1], (1,), LOGIT, Task(2, 0.0), [0, 1, 1], id="logits"),
        pytest.param([0, 1, 1], (1,), MSE, Task(2, 0.5), [0, 1, 1], id="0 and 1 by squared error"),
        pytest.param(
            [-1, 1, 1], (1,), OutputHint(), Task(2, 0.0, "signed"), [0, 1, 1], id="-1 and 1"
        ),
        pytest.param([1, 2, 2], (1,), SIGMOID, Task(2, first=1), [0, 1, 1], id="1 and 2"),
        pytest.param(
            np.array([[[0, 255]]], "uint8"),
            (1, 2, 1),
            SIGMOID,
            Task(2, unit=255),
            [[[0, 1]]],
            id="a mask of bytes",
        ),
    ],
)
def test_classes_become_integers_from_0(labels, shape, hint, task, read_as):
    found, values = read(labels, shape, hint)
    assert found == task
    assert values.dtype == np.int64
    assert values.tolist() == read_as


@pytest.mark.parametrize(
    ("labels", "shape", "hint"),
    [
        ([35, 1, 90], (1,), MSE),
        ([35, 1, 90], (1,), OutputHint()),
        ([0.5, 1.5], (1,), SIGMOID),
        ([[3, 4], [5, 6]], (2,), MSE),
        (np.arange(8, dtype="uint8").reshape(2, 2, 2), (2, 2, 1), SIGMOID),
        ([[1, 1, 0], [0, 0, 0]], (3,), SIGMOID),
        ([[0.5, 0.5, 0.0]], (3,), SOFTMAX),
    ],
    ids=["ages", "counts", "soft", "several", "image", "many labels", "distribution"],
)
def test_other_labels_are_values_of_the_shape_of_the_output(labels, shape, hint):
    task, values = read(labels, shape, hint)
    assert task.classes is None
    assert values.shape == (len(labels), *shape)
    assert values.dtype.kind == "f"
    np.testing.assert_array_equal(values.ravel(), np.ravel(labels))


@pytest.mark.parametrize(
    ("labels", "shape", "hint", "message"),
    [
        ([0, 3], (3,), SOFTMAX, "classes within 0 and 2. Received: values from 0 to 3."),
        ([-1, 2], (3,), SOFTMAX, "Received: values from -1 to 2."),
        ([0, 2], (1,), SIGMOID, "within 0 and 1, for the output is one probability"),
        ([0.5, 1.5], (3,), SOFTMAX, "of shape (3) like the output. Received: float64 of shape ()."),
        (np.ones((2, 4)), (3,), SOFTMAX, "Received: float64 of shape (4,)."),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, shape, hint, message):
    with pytest.raises(DataError) as caught:
        read(labels, shape, hint)
    assert message in str(caught.value)


def test_labels_of_a_pipeline_that_come_later_are_checked_as_well():
    _, step = read_labels("Labels", [np.array([0, 1, 2])], (3,), SOFTMAX)
    with pytest.raises(DataError, match=r"within 0 and 2\. Received: values from 0 to 7"):
        step(np.array([0, 7]))


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "expected"),
    [
        (Task(3), SCORES, [1, 0, 2, 1], Metric("accuracy", 0.75, 4)),
        (Task(2), COLUMN, [0, 1, 1, 0], Metric("accuracy", 1.0, 4)),
        (Task(2, 0.0), COLUMN - 0.5, [0, 1, 1, 0], Metric("accuracy", 1.0, 4)),
        (Task(3), SCORES[None], [[1, 0, 2, 1]], Metric("accuracy", 0.75, 1)),
        (Task(), COLUMN, COLUMN + 0.5, Metric("mse", 0.25, 4)),
        (Task(), SCORES, SCORES, Metric("mse", 0.0, 4)),
    ],
    ids=["classes", "binary", "logit", "positions", "regression", "equal"],
)
def test_metric(task, predictions, labels, expected):
    metric = task.metric(predictions, np.asarray(labels))
    assert (metric.name, metric.samples) == (expected.name, expected.samples)
    assert metric.value == pytest.approx(expected.value)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (Task(3), [2, 2, 0, 2], Metric("accuracy", 0.75, 4)),
        # The best constant has a class, or a value, for each position.
        (Task(2), [[0, 1], [0, 1], [1, 1]], Metric("accuracy", 5 / 6, 3)),
        (Task(), [[1.0], [3.0]], Metric("mse", 1.0, 2)),
        (Task(), [[0.0, 10.0], [2.0, 10.0]], Metric("mse", 0.5, 2)),
    ],
    ids=["classes", "positions", "values", "columns"],
)
def test_trivial_is_the_metric_of_the_best_constant(task, labels, expected):
    trivial = task.trivial(np.asarray(labels))
    assert (trivial.name, trivial.samples) == (expected.name, expected.samples)
    assert trivial.value == pytest.approx(expected.value)


def test_agreement_is_the_part_of_equal_classes():
    assert Task(3).agreement(SCORES, SCORES) == 1.0
    assert Task(3).agreement(SCORES, SCORES[::-1]) == 0.0
    assert Task(3).agreement(SCORES[:2], SCORES[[0, 2]]) == 0.5
    assert Task(2).agreement(COLUMN, COLUMN - 0.2) == 0.75


@pytest.mark.parametrize(
    ("task", "values", "expected"),
    [
        (Task(3), [[0.335, 0.33, 0.335], [0.5, 0.3, 0.2]], [True, False]),
        (Task(3), [[1.0, 1.01, -3.0], [5.0, 1.0, 1.0]], [True, False]),
        (Task(2), [[0.504], [0.6]], [True, False]),
        (Task(2, threshold=0.0), [[0.01], [1.0]], [True, False]),
    ],
)
def test_a_tie_is_a_class_that_hardly_leads(task, values, expected):
    assert task.ties(np.array(values, np.float32)).tolist() == expected
