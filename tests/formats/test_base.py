import numpy as np

from exporter.formats.base import StoredTensor, measure


class TestMeasure:
    def test_a_folder_is_hashed_by_names_and_content_in_sorted_order(self, tmp_path):
        sums = []
        for order in (["a", "b"], ["b", "a"]):
            folder = tmp_path / "".join(order)
            (folder / "sub").mkdir(parents=True)
            for name in order:
                (folder / "sub" / name).write_text(f"content of {name}")
            sums.append(measure(folder))
        assert sums[0] == sums[1]
        assert sums[0][0] == 2 * len("content of a")
        (tmp_path / "ab" / "sub" / "a").rename(tmp_path / "ab" / "sub" / "c")
        assert measure(tmp_path / "ab") != sums[0]


def test_equal_arrays_have_equal_digests_whatever_their_name():
    array = np.arange(6, dtype="float32").reshape(2, 3)
    first, second = StoredTensor.of("a", array), StoredTensor.of("b", array.copy())
    assert first.digest == second.digest
    assert (first.shape, first.nbytes) == ((2, 3), 24)
    assert StoredTensor.of("a", array + 1).digest != first.digest
