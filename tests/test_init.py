"""The public API, and what importing it may cost."""

import inspect
import os
import subprocess
import sys

import pytest

import exporter

HEAVY = {
    "tensorflow",
    "keras",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "ai_edge_litert",
    "numpy",
    "rich",
    "matplotlib",
    "mlflow",
    "jinja2",
}

PUBLIC = {
    "Artifact",
    "ArtifactReport",
    "Benchmark",
    "ClusterError",
    "Comparison",
    "Compressed",
    "ConversionError",
    "ConversionVerdict",
    "DataError",
    "Dataset",
    "Diagnosis",
    "ExportOptions",
    "ExporterError",
    "Factorizer",
    "FineTuned",
    "Forecast",
    "Format",
    "InputError",
    "Inspection",
    "Kernel",
    "LayerKind",
    "ModelCard",
    "ModelError",
    "Network",
    "Normalization",
    "OutputError",
    "PluginError",
    "Point",
    "RankAware",
    "Recipe",
    "RecipeError",
    "Report",
    "Runner",
    "StoredTensor",
    "Sweep",
    "TensorInfo",
    "TrackingError",
    "Variant",
    "benchmark",
    "compare",
    "compress",
    "doctor",
    "dry_run",
    "dry_sweep",
    "export",
    "finetune",
    "inspect",
    "load_dataset",
    "load_recipe",
    "log_mlflow",
    "restore",
    "run",
    "run_worker",
    "sweep",
    "verify",
    "verify_stored",
    "write_report",
}


def test_public_api_is_what_it_is_known_to_be():
    assert set(exporter.__all__) == PUBLIC
    assert set(dir(exporter)) == {*PUBLIC, "__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_resolves_and_is_documented(name):
    assert inspect.getdoc(getattr(exporter, name))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        exporter.nonsense  # noqa: B018


def test_functions_are_not_shadowed_by_modules():
    import exporter.verification.verifier

    assert callable(exporter.verify)
    assert callable(exporter.export)
    assert callable(exporter.compress)


@pytest.mark.parametrize(
    "statement",
    [
        "import exporter; exporter.Recipe(rank=3)",
        "import sys; sys.argv = ['exporter', '--help']\n"
        "import exporter.cli\n"
        "try: exporter.cli.main()\n"
        "except SystemExit: pass",
    ],
    ids=["import and recipe", "help"],
)
def test_start_up_loads_nothing_heavy(statement):
    code = f"{statement}\nimport sys; print('|', *sorted(set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("|")[2].split())
    assert "exporter.recipe" in loaded
    assert not loaded & HEAVY


def python(code, **environment):
    """Runs Python code in a new process and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.slow
def test_keras_uses_tensorflow_whatever_the_environment_says_but_not_once_another_is_in_use():
    code = """
import exporter, keras
print(keras.config.backend())
keras.config.backend = lambda: "torch"
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
for call in (
    lambda: exporter.inspect(model),
    lambda: exporter.run(exporter.Recipe(model=__file__, data="none")),
):
    try:
        call()
    except exporter.ExporterError as error:
        print(error.exit_code, error)
"""
    code = code.replace("__file__", repr(__file__))
    told = python(code, KERAS_BACKEND="torch", TF_USE_LEGACY_KERAS="1")
    backend, first, *others = told.splitlines()
    assert backend == "tensorflow"
    assert first.startswith("2 Keras must use the backend 'tensorflow'. Received: 'torch'")
    assert len(others) == 1


def test_importing_onnxruntime_afterwards_leaves_nothing_behind(tmp_path):
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | places
    code = "import exporter, onnxruntime"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=environment)
    assert not list(tmp_path.iterdir())
