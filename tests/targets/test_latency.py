import numpy as np
import pytest

from exporter.commands.compress import compress
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.targets.latency import measure_latency


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMATS)
def test_latency_of_baseline_and_compressed(name, build, installed, tmp_path):
    fmt, model = installed(name), build("tiny")
    paths = [tmp_path / f"{role}{fmt.suffix}" for role in ("baseline", "compressed")]
    fmt.export(Network(model), paths[0], ExportOptions())
    fmt.export(compress(model, rank=2).network, paths[1], ExportOptions())
    batch = {"features": np.zeros((1, 8), np.float32)}
    latencies = measure_latency(fmt, paths, batch, tmp_path)
    assert len(latencies) == len(paths)
    for latency in latencies:
        assert 0 < latency.p50 <= latency.p90 < 1
        assert latency.calls >= 21


def test_artifact_that_cannot_be_run_has_no_latency(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    path = tmp_path / "model.onnx"
    with pytest.raises(ChildError):
        measure_latency(FORMATS["onnx"], [path], {"x": np.zeros((1, 2))}, tmp_path)
