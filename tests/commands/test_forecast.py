import io

import pytest
from rich.console import Console

import exporter
from exporter.commands import forecast as forecasts
from exporter.report.forecast import print_forecast


@pytest.fixture
def dry(model, arrays, tmp_path):
    """Tells what a run on the little model would do; nothing is there afterwards."""

    def dry(*, exports=True, **choices):
        recipe = exporter.Recipe(output=str(tmp_path / "run"), **choices)
        data = exporter.load_dataset(arrays)
        forecast = exporter.dry_run(recipe, model=model, dataset=data, exports=exports)
        assert list(tmp_path.iterdir()) == []
        return forecast

    return dry


def shown(forecast):
    console = Console(file=io.StringIO(), width=80)
    print_forecast(forecast, console)
    return console.file.getvalue()


def test_sizes_ranks_and_macs_are_those_of_the_run(dry, model, arrays):
    choices = {"rank": {"deep": 6}, "quantize": ("none", "int8")}
    forecast = dry(**choices)
    recipe = exporter.Recipe(output=str(forecast.output), **choices)
    report = exporter.run(recipe, model=model, dataset=exporter.load_dataset(arrays))
    assert forecast.certainty == "planned"
    assert forecast.plan.ranks == {"deep": 6}
    assert (forecast.before, forecast.after) == (report.before, report.after)
    assert len(forecast.artifacts) == len(report.artifacts)
    for told, made in zip(forecast.artifacts, report.artifacts, strict=True):
        assert told.name == made.artifact.path.name
        assert told.size == pytest.approx(made.artifact.size, rel=0.1)
    assert 0 < forecast.seconds < 3600
    assert forecast.memory is None or forecast.memory > 0
    assert "below break-even" in shown(forecast)
    assert "nothing was written" in shown(forecast)


def test_a_budget_is_told_with_a_stand_in_of_as_many_parameters(dry, model):
    forecast = dry(max_params="50%")
    assert forecast.certainty == "about"
    assert 0.4 * model.count_params() < forecast.after.params <= 0.5 * model.count_params()
    assert "max_params 0.5, divided by what each layer loses" in shown(forecast)


def test_channels_that_would_go_are_those_of_the_run(dry, model, arrays, monkeypatch):
    monkeypatch.setattr(forecasts, "PLANNED_SAMPLES", 2)  # On which nearly all would be free.
    choices = {"channels": "free", "rank": "none"}
    forecast = dry(exports=False, **choices)
    compressed = exporter.compress(model, data=arrays, **choices)
    assert forecast.certainty == "about"
    assert forecast.after.params == compressed.model.count_params() < model.count_params()
    assert forecast.channels == compressed.channels
    text = shown(forecast)
    assert "rank none; channels free" in text
    assert "rtifacts" not in text  # As of the verb compress.
    for group in forecast.channels:
        assert group.after == group.before or f"{group.before} -> {group.after}" in text


@pytest.mark.slow
def test_channels_divide_a_budget_as_a_run_has_them(dry, model, arrays):
    choices = {"channels": "auto", "max_params": "30%"}
    forecast = dry(**choices)
    compressed = exporter.compress(model, data=arrays, **choices)
    assert forecast.artifacts[0].size > 0
    assert forecast.certainty == "about"
    assert forecast.channels == compressed.channels
    assert "divided by trying; channels auto" in shown(forecast)


@pytest.mark.parametrize("choices", [{"energy": 0.9}, {"max_drop": "5%"}, {"max_size": "9KB"}])
def test_what_only_a_run_can_know_is_told_as_the_most_that_may_come_out(dry, choices):
    forecast = dry(**choices)
    assert forecast.certainty == "at most"
    assert forecast.before == forecast.after
    assert "bytes, at most" in shown(forecast)
    if "max_size" in choices:
        assert [each.size for each in forecast.artifacts] == [9000]


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"rank": {"depe": 3}}, "Did you mean 'deep'?"),
        ({"max_params": 10}, "The smallest reachable is"),
        ({"rank": 3, "labels": "nothing.txt"}, "one label a line"),
    ],
)
def test_what_a_run_refuses_is_refused(dry, choices, told):
    with pytest.raises(exporter.InputError, match=told.replace("?", ".")):
        dry(**choices)


def test_a_former_run_is_named(model, arrays, tmp_path):
    (tmp_path / "model.tflite").write_text("mine")
    data = exporter.load_dataset(arrays)
    with pytest.raises(exporter.OutputError, match="--force"):
        exporter.dry_run(exporter.Recipe(output=str(tmp_path)), model=model, dataset=data)
    recipe = exporter.Recipe(output=str(tmp_path), force=True)
    forecast = exporter.dry_run(recipe, model=model, dataset=data)
    assert forecast.replaced == ("model.tflite",)
    assert "Would replace in" in shown(forecast)
    assert (tmp_path / "model.tflite").read_text() == "mine"


def test_a_format_that_does_not_convert_is_told(tmp_path):
    import keras

    inputs = keras.Input((24,), name="x")
    model = keras.Model(inputs, keras.ops.erf(keras.layers.Dense(24, name="project")(inputs)))
    recipe = exporter.Recipe(
        rank=4, data="none", formats=("tflite", "onnx"), output=str(tmp_path / "run")
    )
    forecast = exporter.dry_run(recipe, model=model)
    failed, written = forecast.artifacts
    assert forecast.exit_code == 3
    assert "Only builtin operators are allowed" in failed.error
    assert written.size > 0
    assert "does not convert" in shown(forecast)
