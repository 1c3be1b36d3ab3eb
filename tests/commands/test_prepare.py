import keras
import numpy as np
import pytest

from exporter.commands.prepare import prepare
from exporter.data import load_dataset
from exporter.errors import RecipeError
from exporter.recipe import Recipe


def of_my_own(labels, predictions):
    return keras.ops.mean((labels - predictions) ** 2)


@pytest.fixture
def job(tmp_path, save_npz, build):
    """Prepares fine-tuning of a saved model that was compiled with a loss."""

    def ready(loss, suffix="keras"):
        model = build("tiny")
        model.compile(loss=loss)
        path = tmp_path / f"model.{suffix}"
        model.save(path)
        inputs = {i.name: np.ones((20, *i.shape[1:]), "float32") for i in model.inputs}
        data = save_npz(x=next(iter(inputs.values())), y=np.zeros((20, *model.output_shape[1:])))
        recipe = Recipe(model=str(path), data=data, rank=2, finetune=1)
        return prepare(recipe, None, None, None, writes=False)

    return ready


def test_unreadable_loss_is_a_note_and_another_one_is_taken(job):
    ready = job(of_my_own)
    assert ready.loss is None
    (note,) = [note for note in ready.dataset.notes if "of_my_own" in note]
    assert "cannot be read" in note
    assert "is taken instead" in note


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_loss_in_the_file_is_taken(job, suffix):
    ready = job(keras.losses.CategoricalCrossentropy(label_smoothing=0.3), suffix)
    assert ready.loss.get_config()["label_smoothing"] == 0.3
    assert ready.dataset.notes == ()


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def test_loss_of_a_subclassed_model_is_taken():
    model = Subclassed()
    model(np.ones((1, 4), "float32"))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    arrays = {"x": np.eye(4, dtype="float32").repeat(6, axis=0), "y": np.arange(24) % 3}
    recipe = Recipe(rank=1, allow_poor_baseline=True)
    ready = prepare(recipe, model, load_dataset(arrays), None, writes=False)
    assert ready.loss is model.loss


def test_code_of_the_users_own_is_run_before_the_model_is_loaded(tmp_path):
    code = tmp_path / "code.py"
    code.write_text("raise RuntimeError('of the code')")
    recipe = Recipe(model="nowhere.keras", imports=(str(code),), data="none")
    with pytest.raises(RecipeError, match="of the code"):
        prepare(recipe, None, None, None, writes=False)
