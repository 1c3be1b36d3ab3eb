import json
import resource
import zipfile

import h5py
import keras
import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.graph.loading import load_model, loss_in_file
from exporter.graph.network import Network

SUFFIXES = ["keras", "h5"]


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


@pytest.fixture
def save(tmp_path):
    """Saves a model and returns the path as the user gives it."""

    def write(model, suffix="keras"):
        path = tmp_path / f"model.{suffix}"
        model.save(path)
        return str(path)

    return write


class TestLoad:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "zoo_name", ["sequential_mlp", "functional_two_inputs_two_outputs", "nested_functional"]
    )
    def test_a_saved_model_is_the_same(self, save, zoo_model, samples, predict, suffix):
        inputs = samples(zoo_model, 3)
        loaded = load_model(save(zoo_model, suffix))
        expected, actual = predict(zoo_model, inputs), predict(loaded.model, inputs)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-6, atol=1e-6)

    def test_a_loss_of_the_users_own_is_not_needed(self, save, build):
        model = build("tiny")
        model.compile(loss=a_loss_of_my_own)
        assert not load_model(save(model)).model.compiled

    @pytest.mark.parametrize("name", ["nowhere.keras", "nowhere.h5", "nowhere"])
    def test_a_missing_file_is_named(self, tmp_path, name):
        path = str(tmp_path / name)
        with pytest.raises(ModelError, match="does not exist") as caught:
            load_model(path)
        assert path in str(caught.value)

    @pytest.mark.parametrize("name", ["model.pt", "model", "model.tflite"])
    def test_a_file_of_another_kind_is_refused(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"content")
        with pytest.raises(ModelError, match=rf"A model is a \.keras or \.h5 file.*{name}"):
            load_model(str(tmp_path / name))

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(ModelError):
            load_model(str(tmp_path))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("content", [b"", b"This is text.\n"], ids=["empty", "text"])
    def test_a_file_that_is_something_else_is_refused(self, tmp_path, suffix, content):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="damaged, truncated, or something else"):
            load_model(str(path))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
    def test_a_truncated_file_is_refused(self, save, build, tmp_path, suffix, part):
        path = save(build("sequential_mlp"), suffix)
        content = (tmp_path / f"model.{suffix}").read_bytes()
        (tmp_path / f"model.{suffix}").write_bytes(content[: int(part * len(content))])
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert path in str(caught.value)

    def test_an_archive_without_a_model_is_refused(self, save_npz, tmp_path):
        path = tmp_path / "model.keras"
        (tmp_path / save_npz(x=np.ones(3))).rename(path)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(path))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_lambda_layer_is_refused_with_the_remedy(self, save, suffix):
        double = keras.layers.Lambda(lambda x: x * 2, output_shape=(4,))
        path = save(keras.Sequential([keras.Input((4,)), double]), suffix)
        with pytest.raises(ModelError, match=r"Lambda layer.*would run code.*Rescaling"):
            load_model(path)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_custom_layer_is_refused_with_the_remedy(self, save, suffix):
        model = keras.Sequential([keras.Input((4,)), Unregistered(), keras.layers.Dense(2)])
        with pytest.raises(ModelError, match=r"not know its class 'Unregistered'.*custom_objects"):
            load_model(save(model, suffix))

    def test_a_subclassed_model_is_taken(self, save):
        model = keras.saving.register_keras_serializable("tests")(Subclassed)()
        model(np.ones((1, 4), "float32"))
        x = np.ones((2, 4), "float32")
        network = load_model(save(model))
        (found,) = network.runner()({network.inputs[0].name: x}).values()
        np.testing.assert_allclose(found, model(x), rtol=1e-5)

    def test_a_model_that_is_not_built_is_refused(self, save):
        with pytest.warns(UserWarning, match="not yet been built"):
            path = save(keras.Sequential([keras.layers.Dense(3)], name="empty"))
        with pytest.raises(ModelError, match=r"'empty' has not been built.*keras\.Input"):
            load_model(path)


def a_loss_of_my_own(labels, predictions):
    return keras.ops.mean((labels - predictions) ** 2)


def test_names_that_tensorflow_does_not_take_are_changed(save):
    shape, names = (4,), ["erste schicht", "erste_schicht", "näher/dran"]
    chain = [keras.layers.Dense(4, name=name.replace("/", "-")) for name in names]
    inner = keras.Sequential([keras.Input(shape), *chain], name="in nen")
    model = keras.Sequential([keras.Input(shape, name="ein gabe"), inner], name="so so")
    x = np.ones((2, 4), "float32")
    with pytest.raises(ModelError, match=r"TensorFlow takes names.*'so so'.*'erste schicht'"):
        Network(model)
    path = save(model)
    expected = x
    for layer in chain:
        expected = expected @ layer.kernel.numpy()
    network = load_model(path)
    assert network.name == "so_so"
    assert list(network.layers) == [
        "in_nen/erste_schicht_1", "in_nen/erste_schicht", "in_nen/n_her-dran"
    ]  # fmt: skip
    (found,) = network.runner()({"ein_gabe": x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert all(" " not in weight.path for weight in network.model.weights)


def test_names_within_wrappers_are_changed_as_well(save):
    inner = keras.layers.LSTM(3, name="l 1")
    each = keras.layers.TimeDistributed(keras.layers.Dense(2, name="d 1"), name="each")
    model = keras.Sequential([keras.Input((5, 4)), each, keras.layers.Bidirectional(inner)])
    network = load_model(save(model))
    assert all(" " not in weight.path for weight in network.model.weights)
    for weight, found in zip(model.weights, network.model.weights, strict=True):
        np.testing.assert_array_equal(found, weight)


class TestLoss:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "loss", ["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True), None]
    )
    def test_a_loss_of_keras_is_read(self, save, build, suffix, loss):
        model = build("tiny")
        if loss is not None:
            model.compile(loss=loss)
        found = loss_in_file(save(model, suffix))
        assert type(found) is type(loss) or found is keras.losses.get(loss)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_loss_of_the_users_own_is_an_error(self, save, build, suffix):
        model = build("tiny")
        model.compile(loss=a_loss_of_my_own)
        with pytest.raises(ModelError, match=r"loss that .* was compiled with cannot be read"):
            loss_in_file(save(model, suffix))


class TestHostile:
    @pytest.fixture
    def rewritten(self, save, build):
        """Saves a model whose members were changed: ``rewritten(name, function of the JSON)``."""

        def write(member, change):
            path = save(build("tiny"))
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            members[member] = json.dumps(change(json.loads(members[member]))).encode()
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return path

        return write

    @pytest.mark.parametrize("compiled", [7, "x", [], {"loss": 7}, {"loss": {"class_name": "x"}}])
    def test_what_it_was_compiled_with_may_be_damaged(self, rewritten, compiled):
        path = rewritten("config.json", lambda config: {**config, "compile_config": compiled})
        assert load_model(path).params
        with pytest.raises(ModelError, match="compiled with"):
            loss_in_file(path)

    def test_what_an_h5_file_was_compiled_with_may_be_damaged(self, save, build):
        path = save(build("tiny"), "h5")
        with h5py.File(path, "r+") as file:
            file.attrs["training_config"] = "[" * 10_000
        assert load_model(path).params
        with pytest.raises(ModelError, match=r"compiled with is damaged\."):
            loss_in_file(path)

    @pytest.mark.parametrize("config", [[], "x", None, 7])
    def test_a_configuration_that_is_no_object(self, rewritten, config):
        with pytest.raises(ModelError, match="must be a JSON object"):
            load_model(rewritten("config.json", lambda _: config))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("version", [keras.__version__, "2.12.0"])
    def test_weights_that_no_file_of_its_size_can_hold(self, save, suffix, version):
        layers = [keras.Input((4,)), keras.layers.Dense(5, name="wide"), keras.layers.Dense(2)]
        path = save(keras.Sequential(layers), suffix)
        wide = '"units": 5', '"units": 900000000'
        if suffix == "h5":
            with h5py.File(path, "r+") as file:
                file.attrs["model_config"] = file.attrs["model_config"].replace(*wide)
                file.attrs["keras_version"] = version
        else:
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            members["config.json"] = members["config.json"].decode().replace(*wide).encode()
            members["metadata.json"] = json.dumps({"keras_version": version}).encode()
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        with pytest.raises(ModelError, match=r"would unpack to|expected axis -1 of input"):
            load_model(path)
        keras.layers.Dense(1)(keras.Input((2,)))  # Keras gives values to what waits for them.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # In KB.

    def test_stateful_layers_have_their_own_error(self, save):
        layers = [keras.Input(batch_shape=(2, 3, 4)), keras.layers.LSTM(5, stateful=True)]
        with pytest.raises(ModelError, match="is stateful"):
            load_model(save(keras.Sequential(layers)))
