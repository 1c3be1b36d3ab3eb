import re

import pytest

from exporter.card import ModelCard, Normalization
from exporter.errors import InputError, RecipeError
from exporter.formats.cards import check_card, make_card, read_labels
from exporter.graph.signature import TensorInfo

INPUTS = (TensorInfo("image", (None, 28, 28), "float32"),)
OUTPUTS = (
    TensorInfo("kind", (None, 3), "float32"),
    TensorInfo("amount", (None, 1), "float32"),
)


@pytest.fixture
def labels(tmp_path):
    """Writes a file of labels and returns its path."""

    def write(content):
        path = tmp_path / "labels.txt"
        path.write_bytes(content)
        return str(path)

    return write


def test_labels_are_lines(labels):
    assert read_labels(labels("zéro\nun deux\ntrois\n".encode())) == ("zéro", "un deux", "trois")
    assert read_labels(labels(b"a\r\nb\r\n\r\n")) == ("a", "b")
    assert read_labels(labels(b"\xef\xbb\xbfa\nb")) == ("a", "b")  # As editors of Windows begin.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "whose line 1 is empty."),
        (b"\n\n", "whose line 1 is empty."),
        (b"a\n\nb\n", "whose line 2 is empty."),
        (b"a\n\xff\n", "must be a text file in UTF-8, one label a line."),
    ],
)
def test_files_that_are_no_labels_are_refused(labels, content, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_labels(labels(content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        read_labels(str(tmp_path / "none.txt"))


def test_labels_go_to_the_output_that_has_as_many_classes(labels):
    scale = {"image": Normalization(std=255)}
    card = make_card(scale, OUTPUTS, labels=labels(b"a\nb\nc"), description="Sorts.")
    assert card == ModelCard("Sorts.", scale, {"kind": ("a", "b", "c")})
    assert make_card(scale, OUTPUTS) == ModelCard(None, scale, {})


def test_labels_that_fit_no_output_are_refused(labels):
    message = r"\(kind has 3, amount has 1\). Received: 2 labels in .* fit 0 outputs"
    with pytest.raises(RecipeError, match=message):
        make_card({}, OUTPUTS, labels=labels(b"a\nb"))


def test_labels_that_fit_several_outputs_are_refused(labels):
    twice = (*OUTPUTS, TensorInfo("other", (None, 3), "float32"))
    with pytest.raises(RecipeError, match="fit 2 outputs"):
        make_card({}, twice, labels=labels(b"a\nb\nc"))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (ModelCard(normalization={"x": Normalization()}), "by input, image. Received: x."),
        (ModelCard(labels={"kind": ("a",)}), "Received: 1 for 'kind'."),
        (ModelCard(labels={"x": ("a",)}), "kind has 3, amount has 1"),
    ],
)
def test_a_card_of_another_model_is_refused(card, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_card(card, INPUTS, OUTPUTS)


def test_a_card_of_the_model_is_accepted():
    labels = {"kind": ("a", "b", "c"), "amount": ("x",)}
    check_card(ModelCard("", {"image": Normalization()}, labels), INPUTS, OUTPUTS)
