import shutil

import numpy as np
import pytest

from exporter.data import folders, load_dataset, loading
from exporter.errors import DataError


def save_image(path, image):
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_jpeg if path.suffix in {".jpg", ".jpeg"} else tf.io.encode_png
    path.write_bytes(encode(image).numpy())


def save_classes(folder, classes=("cat", "dog", "emu"), count=6, suffix=".png", seed=0):
    """Saves images of several sizes, ``count`` of each class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        for number in range(count):
            shape = (8 + number, 9, 3)
            image = rng.integers(0, 256, shape).astype("uint8")
            save_image(folder / name / f"{number}{suffix}", image)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save_classes(tmp_path / "pets")


@pytest.fixture
def fit(spec, fitted_and_scaled):
    def fit(path, shape=(8, 9, 3), classes=3, scale="unit"):
        inputs, outputs = [spec("image", shape)], [spec("p", (classes,))]
        return fitted_and_scaled(load_dataset(str(path)), inputs, outputs, scale)

    return fit


def keras_images(folder, size, color_mode="rgb"):
    """All images and labels, as Keras reads them."""
    import keras

    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=size, color_mode=color_mode, batch_size=None, verbose=False
    )
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.stack(images), np.array(labels)


def assert_same_samples(split, images, labels):
    ours = sorted(
        zip(split.labels["p"].tolist(), map(bytes, split.inputs["image"][:]), strict=True)
    )
    theirs = sorted(zip(labels.tolist(), map(bytes, images.astype("float32")), strict=True))
    assert ours == theirs


@pytest.mark.parametrize(
    ("suffix", "channels", "mode"),
    [(".png", 1, "grayscale"), (".png", 3, "rgb"), (".png", 4, "rgba")],
)
def test_images_are_those_that_keras_reads(tmp_path, fit, suffix, channels, mode):
    save_classes(tmp_path / "test", suffix=suffix.lower())
    for file in (tmp_path / "test").glob("*/*"):
        file.rename(file.with_suffix(suffix))
    save_classes(tmp_path / "train")
    fitted = fit(tmp_path, (5, 7, channels), scale="none")
    assert_same_samples(fitted.test, *keras_images(tmp_path / "test", (5, 7), mode))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_files_are_decoded_as_exactly_as_they_can_be(tmp_path, fit, suffix):
    import tensorflow as tf

    save_image(tmp_path / "0.jpg", np.random.default_rng(0).integers(0, 256, (16, 16, 3), "uint8"))
    content = (tmp_path / "0.jpg").read_bytes()
    for part, name in [("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")]:
        (tmp_path / "all" / part / name).mkdir(parents=True)
        (tmp_path / "all" / part / name / f"0{suffix}").write_bytes(content)
    image = fit(tmp_path / "all", (16, 16, 3), 2, scale="none").test.inputs["image"][:1]
    exact = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE").numpy()
    assert not np.array_equal(exact, tf.io.decode_image(content).numpy())
    np.testing.assert_array_equal(image[0], exact)


def test_integer_images_are_scaled_like_arrays(folder, fit):
    fitted, raw = fit(folder), fit(folder, scale="none")
    images = fitted.train.inputs["image"]
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[:], raw.train.inputs["image"][:] / 255, rtol=1e-6)


def test_labels_are_the_sorted_folders(folder):
    dataset = load_dataset(str(folder))
    assert dataset.notes == ("labels are the 3 folders in sorted order: 0 cat, 1 dog, 2 emu",)
    assert dataset.train.labels["y"].dtype == np.int64


def test_many_classes_are_counted_and_not_all_listed(tmp_path):
    save_classes(tmp_path / "d", [f"c{number:02}" for number in range(12)], 1)
    (note,) = load_dataset(str(tmp_path / "d")).notes
    assert note.startswith("labels are the 12 folders")
    assert note.endswith("9 c09, ...")


def test_an_undivided_folder_is_split_in_three(folder, fit):
    dataset = load_dataset(str(folder))
    assert [len(part) for part in dataset.parts.values()] == [13, 1, 4]
    fitted = fit(folder)
    images = [
        image.tobytes() for part in fitted.parts.values() for image in part.inputs["image"][:]
    ]
    assert len(set(images)) == 18


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_parts_are_taken_as_they_are(tmp_path, fit, validation):
    counts = {"train": 5, validation: 3, "test": 2}
    for seed, (name, count) in enumerate(counts.items()):
        save_classes(tmp_path / name, count=count, seed=seed)
    fitted = fit(tmp_path)
    assert {name: len(part) for name, part in fitted.parts.items()} == {
        "train": 15,
        "validation": 9,
        "test": 6,
    }
    # The first samples, which calibration looks at, are of all classes.
    assert set(fitted.train.labels["p"][:8]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("names", "lengths"),
    [
        (["train"], {"train": 13, "validation": 1, "test": 4}),
        (["train", "test"], {"train": 16, "validation": 2, "test": 18}),
        (["train", "validation"], {"train": 14, "validation": 18, "test": 4}),
        (["test"], {"test": 18}),
    ],
    ids="-".join,
)
def test_missing_parts_are_taken_from_training(tmp_path, names, lengths):
    for name in names:
        save_classes(tmp_path / name)
    dataset = load_dataset(str(tmp_path))
    assert {name: len(part) for name, part in dataset.parts.items()} == lengths


def test_a_class_may_be_called_like_a_part(tmp_path):
    save_classes(tmp_path, ("test", "train"))
    assert "0 test, 1 train" in load_dataset(str(tmp_path)).notes[0]


def test_hidden_folders_and_other_files_are_left_out(folder):
    before = load_dataset(str(folder))
    (folder / ".cache").mkdir()
    (folder / "README.txt").write_text("pets")
    (folder / "cat" / "notes.txt").write_text("a cat")
    assert load_dataset(str(folder)).digest == before.digest


def test_the_first_frame_of_an_animation_counts(tmp_path, fit):
    frames = (
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
        + 2 * b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
        + b";"
    )
    save_classes(tmp_path / "d", count=1)
    (tmp_path / "d" / "cat" / "a.gif").write_bytes(frames)
    images = fit(tmp_path / "d").test.inputs["image"]
    assert images[:].shape == (1, 8, 9, 3)


def test_the_digest_is_of_names_and_contents(folder, tmp_path):
    digests = [load_dataset(str(folder)).digest]
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_dataset(str(copy)).digest == digests[0]
    save_image(copy / "cat" / "0.png", np.zeros((8, 9, 3), "uint8"))
    digests.append(load_dataset(str(copy)).digest)
    (copy / "cat" / "0.png").rename(copy / "cat" / "9.png")
    digests.append(load_dataset(str(copy)).digest)
    assert len(set(digests)) == 3


def test_nothing_is_decoded_before_it_is_asked_for(folder, fit, monkeypatch):
    monkeypatch.setattr(folders.ImageRows, "read", None)
    fitted = fit(folder)
    assert fitted.train.is_lazy
    assert fitted.train.inputs["image"].shape == (13, 8, 9, 3)


def test_validation_and_test_are_limited(folder, monkeypatch):
    monkeypatch.setattr(loading, "HELD_SAMPLES", 3)
    dataset = load_dataset(str(folder))
    assert len(dataset.test) == 3
    assert dataset.notes[-1] == "test: the first 3 of 4 samples are used"


def test_batches_are_decoded_and_fitted(folder, fit):
    fitted = fit(folder, (4, 4, 1))
    batches = list(fitted.source.batches(5, seed=0, epoch=0))
    assert [len(batch) for batch in batches] == [5, 5, 3]
    assert all(batch.inputs["image"].shape[1:] == (4, 4, 1) for batch in batches)
    assert all(
        0 <= batch.inputs["image"].min() <= batch.inputs["image"].max() <= 1 for batch in batches
    )


def test_an_input_without_an_axis_of_channels_takes_gray(folder, fit):
    assert fit(folder, (4, 4)).test.inputs["image"][:].shape == (4, 4, 4)


class TestRefused:
    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(DataError) as caught:
            load_dataset(str(tmp_path))
        assert "must hold a folder for each class" in str(caught.value)
        assert f"Received: {str(tmp_path)!r}, which holds no folder" in str(caught.value)

    def test_images_without_folders(self, tmp_path):
        save_image(tmp_path / "1.png", np.zeros((2, 2, 3), "uint8"))
        with pytest.raises(DataError, match="which holds no folder"):
            load_dataset(str(tmp_path))

    def test_folders_without_images(self, tmp_path):
        (tmp_path / "cat").mkdir()
        (tmp_path / "dog").mkdir()
        with pytest.raises(DataError, match="which holds folders, and no image in them"):
            load_dataset(str(tmp_path))

    def test_a_part_without_images(self, tmp_path):
        save_classes(tmp_path / "train")
        (tmp_path / "test" / "cat").mkdir(parents=True)
        with pytest.raises(DataError, match="test', which holds folders, and no image"):
            load_dataset(str(tmp_path))

    def test_classes_that_differ(self, tmp_path):
        save_classes(tmp_path / "train")
        save_classes(tmp_path / "test", ("cat", "dog"))
        with pytest.raises(DataError) as caught:
            load_dataset(str(tmp_path))
        assert "must have the same classes" in str(caught.value)
        assert "'test': ('cat', 'dog')" in str(caught.value)

    @pytest.mark.parametrize("other", ["extra", "val"])
    def test_parts_beside_other_folders(self, tmp_path, other):
        for name in ("train", "validation", other):
            save_classes(tmp_path / name, count=1)
        with pytest.raises(DataError, match=r"train, validation \(or val\) and test alone"):
            load_dataset(str(tmp_path))

    def test_validation_without_training(self, tmp_path):
        for name in ("validation", "test"):
            save_classes(tmp_path / name, count=1)
        with pytest.raises(DataError, match="must have a folder train"):
            load_dataset(str(tmp_path))

    @pytest.mark.parametrize(
        "shape", [(None, 9, 3), (None, None, 3), (8, 9, None), (8, 9, 2), (27,), (2, 8, 9, 3)]
    )
    def test_inputs_that_are_no_image_of_fixed_size(self, folder, fit, shape):
        with pytest.raises(DataError) as caught:
            fit(folder, shape)
        assert "must be of a fixed height and width and of 1, 3 or 4 channels" in str(caught.value)
        assert f"input 'image' with samples of shape {shape}" in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut off"])
    def test_an_image_that_cannot_be_decoded(self, folder, fit, content):
        (folder / "dog" / "broken.png").write_bytes(content)
        fitted = fit(folder)
        with pytest.raises(DataError, match=r"Image .*dog/broken\.png' cannot be decoded with 3"):
            for part in fitted.parts.values():
                part.read()

    def test_an_image_that_cannot_be_decoded_while_training(self, tmp_path, fit):
        save_classes(tmp_path / "train")
        save_classes(tmp_path / "test")
        for file in (tmp_path / "train" / "dog").iterdir():
            file.write_bytes(b"no image")
        with pytest.raises(DataError, match=r"train/dog/\d\.png' cannot be decoded"):
            list(fit(tmp_path).source.batches(4, seed=0, epoch=0))

    def test_an_image_that_goes_away(self, folder, fit):
        fitted = fit(folder)
        shutil.rmtree(folder)
        with pytest.raises(DataError, match="cannot be decoded"):
            fitted.test.read()

    def test_a_file_that_cannot_be_read(self, folder):
        (folder / "cat" / "link.png").symlink_to(folder / "nowhere.png")
        with pytest.raises(DataError, match=r"must hold regular files.* Received: .*link\.png"):
            load_dataset(str(folder))

    def test_more_classes_than_the_model_has(self, folder, fit):
        with pytest.raises(DataError, match=r"classes within 0 and 1\. Received: values from"):
            fit(folder, classes=2)

    def test_images_that_are_looked_at_before_they_have_a_size(self, folder):
        with pytest.raises(DataError, match="no size before they are fitted"):
            load_dataset(str(folder)).test.read()
