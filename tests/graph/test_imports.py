import sys

import keras
import numpy as np
import pytest

from exporter.errors import ModelError, RecipeError
from exporter.graph.imports import import_classes
from exporter.graph.loading import load_model

CODE = """
import keras
from beside import FACTOR

class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * FACTOR

@keras.saving.register_keras_serializable("mine")
class Registered(Doubled):
    pass

class Small(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return 0.0
    def get_config(self):
        return {}

def of_my_own(inputs):
    return inputs
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A file of code beside another one; what importing it leaves is taken back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    known = dict(keras.saving.get_custom_objects())
    (tmp_path / "beside.py").write_text("FACTOR = 2")
    (tmp_path / "my layers.py").write_text(CODE)
    yield tmp_path / "my layers.py"
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(known)


@pytest.fixture
def saved(code, tmp_path, request):
    """A model of the classes above, which are forgotten after it is saved."""
    known = dict(keras.saving.get_custom_objects())
    import_classes([str(code)])
    module = sys.modules["my layers"]
    small = keras.layers.Dense(3, kernel_regularizer=module.Small())
    model = keras.Sequential(
        [keras.Input((4,), name="x"), module.Doubled(), module.Registered(), small]
    )
    path = tmp_path / f"model.{request.param}"
    model.save(path)
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(known)
    return str(path), model


@pytest.mark.parametrize("saved", ["keras", "h5"], indirect=True)
def test_classes_of_a_file_are_known(code, saved):
    path, model = saved
    with pytest.raises(ModelError, match="--import"):
        load_model(path)
    import_classes([str(code)])
    x = np.ones((2, 4), "float32")
    (found,) = load_model(path).runner()({"x": x}).values()
    np.testing.assert_allclose(found, model(x), rtol=1e-6)


def test_functions_are_not_made_known(code):
    import_classes([str(code)])
    assert keras.saving.get_registered_object("of_my_own") is None


def test_installed_modules_are_imported_by_name():
    import_classes(["json"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", r"raised ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('stop')", r"raised SystemExit: stop"),
        ("def (", r"raised SyntaxError"),
        ("import nowhere", r"raised ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_code_that_raises_is_an_error(code, text, told):
    code.write_text(text)
    with pytest.raises(RecipeError, match=f"my layers.py' was imported, and {told}"):
        import_classes([str(code)])


@pytest.mark.parametrize("name", ["nowhere.py", "nowhere", "json.nowhere"])
def test_code_that_is_missing_is_an_error(name):
    with pytest.raises(RecipeError, match=f"must be Python files or modules.*{name}"):
        import_classes([name])


@pytest.mark.parametrize("saved", ["keras"], indirect=True)
def test_code_of_the_file_itself_is_refused_still(code, saved, tmp_path):
    import_classes([str(code)])
    double = keras.layers.Lambda(lambda x: x * 2, output_shape=(4,))
    keras.Sequential([keras.Input((4,)), double]).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match="Lambda layer"):
        load_model(str(tmp_path / "lambda.keras"))
