import json

import numpy as np
import pytest

import exporter
from exporter.commands.inspect import effective_ranks
from exporter.report.manifest import plain
from exporter.report.results import SPECTRUM_POINTS


def test_effective_ranks_keep_their_part_of_the_energy():
    energies = np.array([80.0, 15.0, 4.0, 0.9, 0.1])
    curve = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    assert effective_ranks(curve, (0.5, 0.8, 0.95, 0.99, 1.0)) == (1, 1, 2, 3, 5)
    assert effective_ranks(np.zeros(4), (0.9,)) == (1,)


@pytest.mark.parametrize("with_data", [False, True])
def test_every_layer_is_shown_and_nothing_is_changed(build, with_data):
    model = build("conv_batchnorm_dropout")
    before = model.get_weights()
    data = None
    if with_data:
        x = np.random.default_rng(0).normal(size=(60, *model.input_shape[1:]))
        data = exporter.load_dataset({"x": x.astype("float32")})
    found = exporter.inspect(model, data=data)
    assert found.data_aware is with_data
    assert found.params >= sum(kernel.params for kernel in found.kernels)
    shown = {kernel.name: kernel for kernel in found.kernels}
    assert {"conv", "hidden", "probabilities"} <= set(shown)
    hidden = shown["hidden"]
    assert hidden.shape == (96, 24)
    assert hidden.break_even_rank == pytest.approx(96 * 24 / 120)
    assert list(hidden.effective_ranks) == sorted(hidden.effective_ranks)
    assert len(hidden.spectrum) == SPECTRUM_POINTS
    assert hidden.spectrum[0] == 1
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_previews_do_what_the_option_does(build):
    model = build("sequential_mlp")
    found = exporter.inspect(model)
    previews = {preview.option: preview for preview in found.policies}
    for option, choices in {"--rank 0.25": {"rank": 0.25}, "--energy 0.9": {"energy": 0.9}}.items():
        compressed = exporter.compress(model, **choices)
        assert previews[option].params == compressed.model.count_params()
        assert previews[option].ranks == compressed.plan.ranks


def test_options_that_fit_no_layer_say_so(build):
    previews = {p.option: p for p in exporter.inspect(build("tiny")).policies}
    assert previews["--rank 20"].params is None
    assert "at most 6" in previews["--rank 20"].error


def test_layers_that_stay_say_why(build):
    found = exporter.inspect(build("conv_batchnorm_dropout"), fold=False)
    (norm,) = [kernel for kernel in found.kernels if kernel.name == "norm"]
    assert norm.shape is None
    assert "no matrix" in norm.reason


def test_inspection_is_json(build):
    text = json.dumps(plain(exporter.inspect(build("tiny"))), allow_nan=False)
    assert json.loads(text)["kernels"][0]["shape"] == [8, 6]
