import numpy as np
import pytest

from exporter.errors import ConversionError
from exporter.formats import FORMATS
from exporter.formats.base import OperatorTime
from exporter.formats.tflite.profiling import read_summary
from exporter.isolation import call_in_child

SUMMARY = """
============== Summary by node type ==============
                [Node type]    [count]   [avg ms]    [avg %]    [cdf %]   [mem KB] [times called]
    Delegate/Fully Connected (NC, QS8, QC8W) GEMM          3      0.004    80.000%    80.000%      0.000             60
                SOFTMAX          1      0.000     20.000%    100.000%      0.000             20

Timings (microseconds): count=13 first=16 curr=320 min=2 max=32 avg=16 std=3
"""  # noqa: E501


def test_the_summary_is_read_by_kind():
    assert read_summary(SUMMARY, 20) == [
        OperatorTime("Fully Connected (NC, QS8, QC8W) GEMM", 3, pytest.approx(12.8e-6)),
        OperatorTime("SOFTMAX", 1, pytest.approx(3.2e-6)),
    ]
    for text in ("", SUMMARY.replace("curr", "other"), SUMMARY.partition("Delegate")[0]):
        with pytest.raises(ConversionError, match="no time by kind"):
            read_summary(text, 20)


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_operators_of_a_model_are_found_by_the_runtime(name, export_zoo):
    job = {"format": name, "path": str(export_zoo(name, "conv_batchnorm_dropout").path)}
    more = {"batch": 1, "threads": 1, "size": None}
    times = call_in_child("exporter.targets.turns:_profile_here", {**job, **more})
    counts = {time["kind"]: time["count"] for time in times}
    assert sum(n for kind, n in counts.items() if "Conv" in kind and "Convert" not in kind) == 1
    assert sum(n for kind, n in counts.items() if "Fully" in kind or "Gemm" in kind) == 2
    assert [t["seconds"] for t in times] == sorted((t["seconds"] for t in times), reverse=True)
    assert all(time["seconds"] >= 0 for time in times)


def test_other_runtimes_have_no_profiler(tmp_path):
    with pytest.raises(ConversionError, match="'saved_model' has no profiler by operator"):
        FORMATS["saved_model"].profile(tmp_path, {"x": np.zeros((1, 2))}, 1, 1)
