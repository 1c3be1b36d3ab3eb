import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.data import LazyArray, files, fit_to_model, load_dataset, loading
from exporter.errors import DataError


def load_large(source):
    """Loads as if the file were large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LARGE_BYTES", 0)
        return load_dataset(source)


def assert_equal(lazy, eager):
    """Holds a mapped data set against the same in memory."""
    assert lazy.digest == eager.digest
    assert lazy.notes == eager.notes
    assert lazy.parts.keys() == eager.parts.keys()
    for name, part in lazy.parts.items():
        other = eager.parts[name]
        for ours, theirs in ((part.inputs, other.inputs), (part.labels, other.labels)):
            assert list(ours) == list(theirs)
            for key, array in ours.items():
                assert (array.shape, array.dtype) == (theirs[key].shape, theirs[key].dtype)
                np.testing.assert_array_equal(array[:], theirs[key])


DTYPES = ("uint8", "int64", "float32", "float64", ">f4", "bool", "float16")


LAYOUTS = ("x", "x y", "x_train y_train", "x_train y_train x_test y_test", "x_test")


@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    samples=st.tuples(st.integers(1, 30), st.sampled_from([(4, 4), (4, 4, 1)])),
    labels=st.sampled_from([(), (1,), (3,)]),
    fit=st.tuples(
        st.sampled_from([(4, 4), (4, 4, 1), (None, 4)]), st.sampled_from(["unit", "none"])
    ),
)
def test_large_arrays_are_those_in_memory(
    tmp_path_factory, spec, fitted_and_scaled, *, layout, dtype, samples, labels, fit
):
    (count, sample), (wanted, scale) = samples, fit
    rng = np.random.default_rng(count)
    shapes = {"x": sample, "y": labels}
    arrays = {
        name: rng.integers(0, 2, (count, *shapes[name[0]])).astype(dtype if name[0] == "x" else int)
        for name in layout.split()
    }
    path = str(tmp_path_factory.getbasetemp() / "layout.npz")
    np.savez(path, **arrays)
    lazy, eager = load_large(path), load_dataset(path)
    assert_equal(lazy, eager)
    assert lazy.test.is_lazy
    assert not eager.test.is_lazy
    given_to = (
        [spec("image", wanted if wanted[0] else sample)],
        [spec("p", (3,) if labels != (1,) else (2,))],
    )
    fitted = [fitted_and_scaled(d, *given_to, scale) for d in (lazy, eager)]
    assert_equal(*fitted)
    assert fitted[0].test.is_lazy


def test_an_npy_may_be_large(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(12.0).reshape(6, 2))
    assert_equal(load_large(str(path)), load_dataset(str(path)))
    assert isinstance(load_large(str(path)).test.inputs["x"], LazyArray)


def test_headers_of_the_second_version_are_understood(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.ones((6, 2)), version=(2, 0))
    assert load_large(str(tmp_path / "x.npy")).test.is_lazy


def test_names_of_fields_beyond_latin_are_no_numbers(tmp_path):
    with pytest.warns(UserWarning, match="NumPy >= 1.17"):
        np.save(tmp_path / "x.npy", np.zeros((3, 2), [("Ω", "f4")]))
    with pytest.raises(DataError, match=r"no array of numbers: of version 3, which is for records"):
        load_large(str(tmp_path / "x.npy"))


def test_small_files_are_read_and_large_ones_stay(save_npz, monkeypatch):
    path = save_npz(x=np.zeros((8, 4)), y=np.arange(8))
    monkeypatch.setattr(files, "LARGE_BYTES", 600)
    assert not load_dataset(path).train.is_lazy
    monkeypatch.setattr(files, "LARGE_BYTES", 500)
    assert load_dataset(path).train.is_lazy


def test_the_digest_of_a_file_in_memory_is_what_it_was(save_npz):
    x = np.arange(12, dtype="uint8").reshape(6, 2)
    assert load_dataset(save_npz(x=x)).digest == (
        "cd8af2f7e4e3cf58ab952c15957de617154ef7bc611c91f46e95cc3a534acab4"
    )


def test_columns_in_fortran_order_have_the_same_digest():
    x = np.arange(12.0).reshape(6, 2)
    digests = {load_dataset({"x": array}).digest for array in (x, np.asfortranarray(x))}
    assert len(digests) == 1


def test_dividing_a_large_file_reads_nothing(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=np.zeros((50, 3)), y=np.zeros((50, 2)))
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(loading, "checked_digest", lambda source, arrays: "digest")
    monkeypatch.setattr(files.FileRows, "read", None)
    dataset = load_dataset(str(tmp_path / "d.npz"))
    assert [len(part) for part in dataset.parts.values()] == [36, 4, 10]


def test_validation_and_test_of_a_large_file_are_limited(save_npz, monkeypatch, spec):
    path = save_npz(x=np.arange(100.0).reshape(50, 2), y=np.arange(50))
    monkeypatch.setattr(loading, "HELD_SAMPLES", 6)
    eager, lazy = load_dataset(path), load_large(path)
    assert eager.notes == ()
    assert [len(part) for part in eager.parts.values()] == [36, 4, 10]
    assert [len(part) for part in lazy.parts.values()] == [36, 4, 6]
    assert lazy.notes == ("test: the first 6 of 10 samples are used",)
    np.testing.assert_array_equal(lazy.test.inputs["x"][:], eager.test.inputs["x"][:6])
    fitted = fit_to_model(lazy, [spec("x", (2,))], [spec("p", (50,))])
    assert fitted.notes[:1] == lazy.notes


def test_an_array_that_the_caller_has_mapped_stays_on_disk(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not load_dataset({"x": array}).test.is_lazy
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    dataset = load_dataset({"x": array})
    assert dataset.test.is_lazy
    joined = np.concatenate([part.inputs["x"][:] for part in dataset.parts.values()])
    np.testing.assert_array_equal(np.sort(joined, axis=0), array)


class TestWhatCannotStayInItsFile:
    @pytest.fixture
    def small_memory(self, monkeypatch):
        monkeypatch.setattr(files, "LARGE_BYTES", 0)
        monkeypatch.setattr(files, "READ_BYTES", 100)

    def test_is_read_if_it_fits(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "LARGE_BYTES", 0)
        np.savez_compressed(tmp_path / "c.npz", x=np.ones((6, 3)))
        np.save(tmp_path / "f.npy", np.asfortranarray(np.ones((6, 3))))
        for name in ("c.npz", "f.npy"):
            dataset = load_dataset(str(tmp_path / name))
            assert not dataset.test.is_lazy
            assert dataset.train.inputs["x"].shape == (5, 3)

    def test_compressed_is_refused_if_it_does_not_fit(self, tmp_path, small_memory):
        np.savez_compressed(tmp_path / "d.npz", x=np.ones((6, 3)))
        with pytest.raises(DataError) as caught:
            load_dataset(str(tmp_path / "d.npz"))
        assert "Array 'x' of data" in str(caught.value)
        assert "is compressed, so that it must be read into memory" in str(caught.value)
        assert "np.savez in place of np.savez_compressed" in str(caught.value)

    def test_fortran_order_is_refused_if_it_does_not_fit(self, tmp_path, small_memory):
        np.save(tmp_path / "d.npy", np.asfortranarray(np.ones((6, 3))))
        with pytest.raises(DataError, match=r"is in Fortran order, .* np\.ascontiguousarray"):
            load_dataset(str(tmp_path / "d.npy"))

    def test_vectors_are_read_unless_they_are_too_large(self, save_npz, small_memory):
        few = load_dataset(save_npz(x_test=np.ones((12, 2)), y_test=np.arange(12)))
        assert type(few.test.labels["y"]) is np.ndarray
        many = load_dataset(save_npz(x_test=np.ones((20, 2)), y_test=np.arange(20)))
        assert isinstance(many.test.labels["y"], LazyArray)


class TestDamage:
    def test_values_are_checked_on_disk(self, save_npz, monkeypatch):
        x = np.ones((50, 2))
        x[[3, 40], 1] = np.nan, np.inf
        monkeypatch.setattr("exporter.data.lazy.CHUNK_BYTES", 64)
        with pytest.raises(DataError, match=r"Array 'x' of .* Received: 2 NaN, infinite or"):
            load_large(save_npz(x=x))

    @pytest.mark.parametrize("cut", [1, 40])
    def test_a_file_that_is_cut_off_is_refused(self, tmp_path, cut):
        path = tmp_path / "x.npy"
        np.save(path, np.ones((6, 2)))
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(DataError, match=r"x\.npy"):
            load_large(str(path))

    def test_a_member_that_is_cut_off_is_refused(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones((6, 2)))
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-8])
            archive.writestr("z.npy", bytes(100))
        with pytest.raises(DataError, match=r"cannot be read: its array 'x' is cut off\."):
            load_large(str(tmp_path / "d.npz"))

    def test_a_file_that_goes_away_meanwhile_is_named(self, save_npz, tmp_path):
        dataset = load_large(save_npz(x=np.ones((6, 2))))
        (tmp_path / "data.npz").unlink()
        with pytest.raises(DataError, match=r"data\.npz' cannot be read: .*No such file"):
            dataset.test.inputs["x"][:2]

    def test_a_file_that_shrinks_meanwhile_is_named(self, save_npz, tmp_path):
        dataset = load_large(save_npz(x=np.ones((6, 2))))
        (tmp_path / "data.npz").write_bytes(b"other")
        with pytest.raises(DataError, match=r"is cut off: 16 bytes .* Received: 0\. Write it anew"):
            dataset.test.inputs["x"][:1]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_memory_stays_constant(tmp_path, suffix):
    rows = 144_000
    path = tmp_path / f"large.{suffix}"
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 128, 128)}
        if suffix == "npy":
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + rows * 16_384)
    if suffix == "npz":
        blank = bytes(1000 * 16_384)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("x.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(rows // 1000):
                    member.write(blank)
            with archive.open("y.npy", "w") as member:
                np.save(member, np.zeros(rows, "int64"))
    # In a process of its own: the peak is that of this walk alone.
    walk = """
        import resource, sys
        import keras, numpy as np, tensorflow
        from exporter.graph.fitting import fitted
        from exporter.data import load_dataset
        from exporter.graph.network import Network
        from exporter.lowrank.calibration import calibration_from

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((128, 128, 1)), layers.GlobalAveragePooling2D(), layers.Dense(3)]
        )
        before = peak()
        network = Network(model)
        dataset = fitted(load_dataset(sys.argv[1]), network)
        calibration = calibration_from(network, dataset, 1024)
        samples = sum(len(batch) for batch in dataset.source.batches(256, seed=0, epoch=0))
        print(samples == len(dataset.train) > 100_000, len(calibration), peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(walk), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, calibrated, growth = done.stdout.split()
    assert (whole, calibrated) == ("True", "1024")
    assert float(growth) < 300
