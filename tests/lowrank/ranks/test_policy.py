import re

import pytest

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.lowrank.candidates import candidates
from exporter.lowrank.ranks.policy import FixedRank, FullRank, RankByLayer, WholeLayers


@pytest.fixture
def mlp(build):
    """Candidates of shapes 36 x 40, 40 x 32 and 32 x 10: break-even at 18.9, 17.8 and 7.6."""
    return candidates(Network(build("sequential_mlp")))


@pytest.fixture
def convolutional(build):
    return candidates(Network(build("conv_batchnorm_dropout")))


def by_name(plan):
    return {layer.name: layer for layer in plan.layers}


class TestFixedRank:
    def test_factorizes_below_break_even_and_says_why(self, mlp):
        plan = FixedRank(8).select(mlp)
        assert plan.ranks == {"hidden_1": 8, "hidden_2": 8}
        layers = by_name(plan)
        assert list(layers) == ["hidden_1", "hidden_2", "probabilities"]
        assert "below break-even 18.9" in layers["hidden_1"].reason
        assert layers["probabilities"].rank is None
        assert "rank 8 reaches break-even 7.6" in layers["probabilities"].reason

    def test_counts_parameters_and_macs_before_and_after(self, mlp):
        layers = by_name(FixedRank(8).select(mlp))
        hidden, last = layers["hidden_1"], layers["probabilities"]
        assert (hidden.shape, hidden.params_before) == ((36, 40), 36 * 40 + 40)
        assert hidden.params_after == 8 * (36 + 40) + 40
        assert hidden.break_even_rank == pytest.approx(36 * 40 / 76)
        assert last.params_before == last.params_after == 32 * 10 + 10
        assert (hidden.macs_before, hidden.macs_after) == (36 * 40, 8 * (36 + 40))
        assert last.macs_before == last.macs_after == 32 * 10

    def test_counts_s_where_it_is_not_merged(self, build):
        unmerged = candidates(Network(build("sequential_mlp")), merge=False)
        hidden = by_name(FixedRank(8).select(unmerged))["hidden_1"]
        assert hidden.params_after == 8 * (36 + 40) + 8 * 8 + 40
        assert hidden.macs_after == 8 * (36 + 40) + 8 * 8

    def test_a_rank_equal_to_break_even_stays_dense(self, build):
        """32 x 32 breaks even at 16 exactly."""
        (mix,) = [
            c for c in candidates(Network(build("nested_functional"))) if c.name == "inner/mix"
        ]
        assert FixedRank(11).select([mix]).ranks == {"inner/mix": 11}
        assert FixedRank(12).select([mix]).ranks == {}

    def test_layers_without_a_kernel_are_listed_with_the_reason(self, convolutional):
        layers = by_name(FixedRank(4).select(convolutional))
        assert list(layers) == ["conv", "norm", "hidden", "probabilities"]
        norm = layers["norm"]
        assert (norm.rank, norm.shape, norm.break_even_rank) == (None, None, None)
        assert "has no matrix" in norm.reason
        assert norm.params_before == norm.params_after == 4 * 6
        assert norm.macs_before is norm.macs_after is None

    def test_a_rank_above_every_layer_is_refused_with_their_shapes(self, mlp):
        assert FixedRank(36).select(mlp).ranks == {}
        message = (
            "Rank must be at most 36, the smaller side of the largest layer. Received: 37. "
            "Give a smaller one, or the rank 'none', which leaves all layers whole. "
            "Layers: hidden_1 (36 x 40), hidden_2 (40 x 32), probabilities (32 x 10)."
        )
        with pytest.raises(RecipeError, match=re.escape(message)):
            FixedRank(37).select(mlp)

    def test_a_model_without_layers_to_factorize_takes_any_rank(self, convolutional):
        others = [c for c in convolutional if c.kernel is None]
        assert others
        assert FixedRank(1000).select(others).ranks == {}


class TestRankByLayer:
    def test_factorizes_the_named_layers_alone(self, mlp):
        plan = RankByLayer({"hidden_2": 5}).select(mlp)
        assert plan.ranks == {"hidden_2": 5}
        assert by_name(plan)["hidden_1"].reason == "not named in rank"

    def test_each_layer_has_its_own_rank(self, mlp):
        ranks = {"hidden_1": 3, "probabilities": 7}
        assert RankByLayer(ranks).select(mlp).ranks == ranks

    def test_a_named_layer_past_break_even_stays_dense(self, mlp):
        plan = RankByLayer({"probabilities": 8}).select(mlp)
        assert plan.ranks == {}
        assert "reaches break-even 7.6" in by_name(plan)["probabilities"].reason

    @pytest.mark.parametrize(
        ("ranks", "message"),
        [
            ({"hiden": 3}, "Unknown layer 'hiden' in rank. Layers: "),
            (
                {"norm": 3},
                "Layer 'norm' is of kind BatchNormalization, which is not factorized. Layers: ",
            ),
            ({"hidden": 25}, "Rank of layer 'hidden' must be at most 24. Received: 25. Layers: "),
        ],
        ids=["unknown", "other_kind", "too_large"],
    )
    def test_refusals_list_the_layers(self, convolutional, ranks, message):
        listing = r".*hidden \(96 x 24\), probabilities \(24 x 5\)\.( Did you mean 'hidden'\?)?$"
        with pytest.raises(RecipeError, match=re.escape(message)) as caught:
            RankByLayer(ranks).select(convolutional)
        found = re.search(listing, str(caught.value))
        assert bool(found[1]) is message.startswith("Unknown")

    def test_a_model_without_layers_to_factorize_says_so(self, convolutional):
        others = [c for c in convolutional if c.kernel is None]
        assert others
        with pytest.raises(RecipeError, match="Layers: none can be factorized"):
            RankByLayer({"hidden": 2}).select(others)

    def test_nested_layers_are_named_by_their_path(self, build):
        plan = RankByLayer({"body/second": 4}).select(
            candidates(Network(build("nested_sequential")))
        )
        assert plan.ranks == {"body/second": 4}


@pytest.mark.parametrize(
    "policy", [FixedRank(8), RankByLayer({"hidden_1": 3}), FullRank(), WholeLayers()]
)
def test_policies_choose_for_every_kernel_without_curves(mlp, policy):
    choices = policy.choose(mlp, {})
    assert list(choices) == [c.name for c in mlp]
    assert not policy.needs_curves
    assert {name: c.rank for name, c in choices.items() if c.rank} == policy.select(mlp).ranks


def test_full_rank_takes_every_layer_past_break_even(mlp):
    plan = FullRank().select(mlp)
    assert plan.ranks == {"hidden_1": 36, "hidden_2": 32, "probabilities": 10}
    assert {layer.reason for layer in plan.layers} == {
        "full rank was asked for; exact, not smaller"
    }
    assert all(layer.params_after > layer.params_before for layer in plan.layers)
