from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates


def test_candidates_are_the_layers_with_weights_in_order(build):
    found = candidates(Network(build("conv_batchnorm_dropout")))
    assert [(c.name, c.kind) for c in found] == [
        ("conv", "Conv2D"),
        ("norm", "BatchNormalization"),
        ("hidden", "Dense"),
        ("probabilities", "Dense"),
    ]
