import numpy as np

from exporter.lowrank.calibration import Calibration


class TestCalibration:
    def test_head_is_made_of_whole_batches(self):
        calibration = Calibration({"x": np.zeros((10, 2))}, 3)
        assert [len(calibration.head(count)) for count in (1, 3, 8, 100)] == [3, 3, 6, 10]

    def test_batches_hold_all_samples_once(self):
        x = np.arange(10)
        batches = list(Calibration({"x": x}, 4).batches())
        assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), x)
