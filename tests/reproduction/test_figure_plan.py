"""Test the trainings, comparisons, seeds and shards of a figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.config import GemMinerConfig, Kind, Schedule
from harness.models import MODELS
from harness.models.initialise import SCHEMES
from harness.pruning import METHODS
from harness.reproduction.figure import FIGURES, Curve
from harness.reproduction.figure_plan import FigurePlan


def test_figure_three_by_hand(plan: FigurePlan):
    """Count the runs of Figure 3 for two trials.

    It has five curves at two levels, and at a third level three stability and two connectivity comparisons. The dense
    network is trained for 4 epochs and for 2 + 3·1 + 4, as many as a ticket of level 3 costs.
    """
    trainings, pairs = plan.trainings(), plan.pairs()
    assert {str(one) for one in trainings if one.curve is None and one.trial == 1} == {"dense-t1", "dense-e9-t1"}
    shown = 2 * (2 + 5 * 2)
    # at the third level: retrain of lrr, signed_mask of lrr and aws, a twin of each, and retrain of aws
    assert len(trainings) == shown + 2 * (3 + 3 + 1)
    assert len(pairs) == 2 * 5
    assert len(set(map(str, trainings))) == len(trainings)


def test_trials_share_no_seed_that_must_differ(plan: FigurePlan):
    for training in plan.trainings():
        assert training.init_seed is None or training.init_seed != training.search_seed
    of_trial = {
        one.trial: (one.search_seed, one.init_seed, one.sgd_seed) for one in plan.of_curve(Curve("aws", "mask"), 1)
    }
    assert len(set(of_trial.values())) == 2
    # all kinds of a trial have the same θ_init and SGD noise
    assert (
        len({(t.init_seed, t.sgd_seed) for t in plan.trainings() if t.trial == 1 and not t.twin and t.init_seed}) == 1
    )


def test_stability_compares_one_start_under_two_noises(plan: FigurePlan):
    for pair in plan.pairs():
        first, second = pair.first, pair.second
        assert (first.trial, first.level, first.search_seed) == (second.trial, second.level, second.search_seed)
        if pair.question in ("norm_init", "signed_init"):
            assert first == second and first.kind == "level"
        elif pair.question == "stability":
            assert (
                first.sgd_seed != second.sgd_seed and first.init_seed == second.init_seed and first.kind == second.kind
            )
        else:
            assert second.kind == "retrain" and not second.twin


def test_a_tickets_signs_are_put_on_the_initialisation_that_they_are_trained_on(plan: FigurePlan):
    claims = replace(plan, figure=FIGURES["claims"])
    trained = {(one.curve, one.trial): one.init_seed for one in claims.trainings() if one.kind == "signed_mask"}
    copies = [pair for pair in claims.pairs() if pair.question == "signed_init"]
    assert [pair.first.curve.method for pair in copies] == ["lrr", "lrr", "aws", "aws"]
    for pair in copies:
        assert pair.init_seed == trained[Curve(pair.first.curve.method, "signed_mask"), pair.first.trial]
    assert {pair.init_seed for pair in claims.pairs() if pair.question != "signed_init"} == {None}


def test_a_shared_search_is_one_search_a_method(plan: FigurePlan):
    shared = replace(plan, shared_search=True)
    assert {one.search_seed for one in shared.trainings()} == {1}
    assert sorted(shared.chains()) == ["aws-s1", "dense-t1", "dense-t2", "lrr-s1"]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shards_share_out_everything_once(plan: FigurePlan, count: int):
    shares = [plan.shard(index, count) for index in range(1, count + 1)]
    assert sorted(chain for share in shares for chain in share) == sorted(plan.chains())
    if count == 2:
        loads = [sum(plan.epochs(chain) for chain in share) for share in shares]
        assert max(loads) < 1.2 * min(loads)


def test_epochs_of_a_chain_by_hand(plan: FigurePlan):
    """Count the epochs of a chain by hand.

    Warm-up has 2 epochs, a level 1 and a final training 4. Levels are 1 and 3, and level 2 for the barriers of AWS and
    LRR.
    """
    assert plan.epochs("dense-t1") == 4 + 9
    # seven final trainings: signed_mask at three levels and its twin, retrain at three levels
    assert plan.epochs("aws-s1") == 2 + 3 + 7 * 4
    rewinding = replace(plan, figure=FIGURES["rewinding"])
    # levels 0 to 3 are final trainings; signed_mask at two levels
    assert rewinding.epochs("imp-s1") == (4 + 2) * 4
    short = replace(plan, figure=FIGURES["short_levels"])
    assert short.epochs("aws-s1") == 2 + 3 + 2 * 2 * 4 and short.epochs("aws_full-s1") == (4 + 2 * 2) * 4
    assert short.epochs("lrr_full-s1") == (4 + 2) * 4  # retrain is the same run as the level
    gem = GemMinerConfig(score_epochs=20, finetune=Schedule(7, "step"))
    scale = replace(plan.scale, config=replace(plan.scale.config, gem_miner=gem))
    fig4 = replace(plan, figure=FIGURES["fig4"], scale=scale)
    assert fig4.epochs("gem_miner-s1") == 2 * (
        20 + 7 + 4
    )  # each density has its own search and a final training of its signed mask


@pytest.mark.parametrize("index", [0, 3])
def test_an_invalid_shard_is_refused(plan: FigurePlan, index: int):
    with pytest.raises(ValueError, match=f"shard {index}/2"):
        plan.shard(index, 2)


def test_names_are_listed_after_their_dependencies(plan: FigurePlan):
    names = list(plan.names())
    assert len(names) == len(set(names)) == 4 + len(plan.trainings()) + len(plan.pairs())
    assert names.index("aws-s1-search") < names.index("aws-L01-signed_mask-t1")
    assert names.index("aws-L02-signed_mask-t1-twin") < names.index("stability-aws-L02-signed_mask-t1")


@pytest.mark.parametrize("figure", FIGURES.values(), ids=list(FIGURES))
def test_figures_use_known_methods_kinds_and_networks(figure):
    kinds = {*Kind.__args__, "level"}
    assert figure.claims or len(figure.curves) == 1
    for curve in figure.curves:
        assert curve.kind in kinds and curve.method in METHODS and curve.initialisation in SCHEMES
    for claim in figure.claims:
        assert {claim.first, claim.second} <= {None, *figure.curves} and claim.first != claim.second and claim.says
        # the claim's wording and its test have the same direction; questions of this project have none
        words = {
            "about equal or better": "a > b − 1",
            "about equal": "|a − b| < 1",
            "better": "a > b",
            "worse": "a < b",
        }
        meant = next((formula for word, formula in words.items() if word in claim.says.split(":")[0]), "a ≠ b")
        assert claim.tested == (meant if figure.source else "a ≠ b")
    assert {*figure.stability, *figure.connectivity} <= set(figure.curves)
    assert all(network in MODELS for networks in figure.subjects.values() for network in networks)


FOUR = ("resnet50_cifar", "mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")
TABLES = ("resnet50", "mobilenet_v2", "mlp_mixer")
LRR = {("lrr", "retrain"), ("lrr", "signed_mask")}
BOTH = LRR | {("aws", "retrain"), ("aws", "signed_mask")}
RED = ("aws", "signed_mask")


@pytest.mark.parametrize(
    ("name", "subjects", "curves", "stability", "connectivity"),
    [
        (
            *("fig2", {"cifar100": FOUR}, LRR | {("lrr", "mask"), ("lrr", "signed_mask_norm")}),
            *(LRR | {("lrr", "signed_mask_norm")}, {("lrr", "signed_mask"), ("lrr", "signed_mask_norm")}),
        ),
        (
            *("fig3", {"cifar100": FOUR, "tiny_imagenet": FOUR}, BOTH | {("lrr", "mask")}),
            *(LRR | {RED}, {("lrr", "signed_mask"), RED}),
        ),
        (
            *("fig4", {"cifar100": ("resnet32",)}),
            # Gem-Miner's ticket on another θ_init is in section 4.4, not in a plot
            {("aws", "retrain"), RED, ("gem_miner", "level"), ("gem_miner", "signed_mask")},
            *(set(), set()),
        ),
        ("gem_miner", {"cifar10": ("resnet20",)}, {("gem_miner", "level")}, set(), set()),
        ("fig5", {"cifar100": FOUR}, LRR | {("lrr", "signed_mask_norm_const")}, set(), set()),
        ("fig6", {"cifar100": ("vgg11_bn_cifar",)}, BOTH, LRR | {RED}, {("lrr", "signed_mask"), RED}),
        ("table1", {"imagenet": TABLES}, BOTH, set(), set()),
        ("table2", {"imagenet": TABLES}, BOTH, set(), set()),
    ],
)
def test_figures_show_what_the_paper_shows(name, subjects, curves, stability, connectivity):
    """Compare networks, data sets, trainings and barriers with the paper's captions."""
    figure = FIGURES[name]
    assert figure.subjects == subjects
    assert {(curve.method, curve.kind) for curve in figure.curves} == curves
    assert {(curve.method, curve.kind) for curve in figure.stability} == stability
    assert {(curve.method, curve.kind) for curve in figure.connectivity} == connectivity


def test_controls_by_hand(plan: FigurePlan):
    """List the runs of the controls figure.

    Each control replaces the signs, the magnitudes or the mask. All use the trial's own seeds.
    """
    controls = replace(plan, figure=FIGURES["controls"], scale=replace(plan.scale, levels=(3,), trials=1))
    assert list(controls.names()) == [
        "dense-t1",
        "aws-s1-search",
        "aws-L03-retrain-t1",
        "aws-L03-signed_mask-t1",
        "aws-L03-mask-t1",
        "aws-L03-signed_mask-constant-t1",
        "aws-L03-random_signs-t1",
        "aws-L03-random_mask-t1",
    ]
    assert {one.init_seed for one in controls.trainings() if one.kind != "retrain"} == {101}
    assert {one.sgd_seed for one in controls.trainings()} == {1}


@pytest.mark.parametrize("name", ["fig3", "fig4", "claims", "table1", "table2"])
def test_figures_with_a_dense_network_compare_the_sign_with_both_its_lengths(name: str) -> None:
    """Check signed_mask (aws) − dense, also with as many epochs as the ticket costs."""
    figure = FIGURES[name]
    against = [one for one in figure.claims if one.second is None and one.first == Curve("aws", "signed_mask")]
    assert {one.dense_at_ticket_cost for one in against} == {False, True} and figure.dense_at_ticket_cost


@pytest.mark.parametrize("method", ["imp", "wr"])
def test_rewinding_asks_whether_signs_of_full_trainings_reach_their_ticket(method: str) -> None:
    figure, signs, ticket = FIGURES["rewinding"], Curve(method, "signed_mask"), Curve(method, "level")
    assert {signs, ticket} <= {*figure.curves}
    assert [one.expects for one in figure.claims if (one.first, one.second) == (signs, ticket)] == ["differs"]


CLAIMS = {
    "fig2": (
        "signed_mask_norm (lrr) ≈ retrain (lrr)",
        "signed_mask_norm (lrr) > signed_mask (lrr)",
        "signed_mask (lrr) ≈ mask (lrr)",
    ),
    "fig3": (
        "signed_mask (aws) ≈ retrain (aws)",
        "signed_mask (aws) > mask (lrr)",
        "signed_mask (aws) > signed_mask (lrr)",
        "signed_mask (lrr) < retrain (lrr)",
        "signed_mask (lrr) ≈ mask (lrr)",
        "retrain (aws) ≥ retrain (lrr)",
        "signed_mask (aws) ≥ dense",
        "signed_mask (aws) ≠ longer dense",
    ),
    "claims": (
        "signed_mask (aws) ≈ retrain (aws)",
        "signed_mask (aws) > mask (aws)",
        "signed_mask (aws) > signed_mask (lrr)",
        "signed_mask_norm (lrr) > signed_mask (lrr)",
        "signed_mask (lrr) < retrain (lrr)",
        "signed_mask (lrr) ≈ mask (lrr)",
        "retrain (aws) ≥ retrain (lrr)",
        "signed_mask (aws) ≥ dense",
        "signed_mask (aws) ≠ longer dense",
    ),
    "rewinding": (
        "level (imp) < retrain (lrr)",
        "level (wr) < retrain (lrr)",
        "signed_mask (imp) ≠ level (imp)",
        "signed_mask (wr) ≠ level (wr)",
    ),
    "short_levels": (
        "retrain (lrr) ≈ level (lrr_full)",
        "retrain (aws) ≈ retrain (aws_full)",
        "signed_mask (lrr) ≈ signed_mask (lrr_full)",
        "signed_mask (aws) ≈ signed_mask (aws_full)",
    ),
    "fig4": (
        "signed_mask (aws) > level (gem_miner)",
        "signed_mask (aws) ≈ retrain (aws)",
        "signed_mask (gem_miner) < level (gem_miner)",
        "signed_mask (aws) ≥ dense",
        "signed_mask (aws) ≠ longer dense",
    ),
    "fig4_equal": ("signed_mask (aws) ≠ level (gem_miner)",),
    "gem_miner": (),
    "fig5": ("signed_mask_norm_const (lrr) ≈ signed_mask (lrr)",),
    "fig6": (
        "signed_mask (lrr) ≈ retrain (lrr)",
        "signed_mask (aws) ≈ signed_mask (lrr)",
    ),
    "table1": (
        "signed_mask (aws) ≈ retrain (aws)",
        "signed_mask (aws) > signed_mask (lrr)",
        "signed_mask (lrr) < retrain (lrr)",
        "signed_mask (aws) ≠ dense",
        "signed_mask (aws) ≠ longer dense",
    ),
    "table2": (
        "signed_mask (aws) ≈ retrain (aws)",
        "signed_mask (aws) > signed_mask (lrr)",
        "signed_mask (lrr) < retrain (lrr)",
        "signed_mask (aws) ≠ dense",
        "signed_mask (aws) ≠ longer dense",
    ),
    "controls": (
        "signed_mask (aws) ≠ random_signs (aws)",
        "signed_mask from constant (aws) ≠ signed_mask (aws)",
        "signed_mask from constant (aws) ≠ retrain (aws)",
        "mask (aws) ≠ random_mask (aws)",
    ),
    "transfer": (
        "signed_mask (aws) ≠ mask (aws)",
        "signed_mask (lrr) ≠ mask (lrr)",
        "signed_mask (aws) ≠ signed_mask (lrr)",
        "mask (aws) ≠ random_mask (aws)",
    ),
}
"""Figure → its claims and questions; ≈ and ≥ have a margin of one point. “longer dense” has the ticket's epochs."""
SYMBOLS = {"greater": ">", "less": "<", "differs": "≠", "equal": "≈", "not_worse": "≥"}


@pytest.mark.parametrize("name", FIGURES)
def test_claims_by_hand(name: str) -> None:
    found = []
    for one in FIGURES[name].claims:
        dense = "longer dense" if one.dense_at_ticket_cost else "dense"
        found.append(f"{one.first or dense} {SYMBOLS[one.expects]} {one.second or dense}")
        assert one.margin == (1.0 if one.expects in ("equal", "not_worse") else None)
    assert tuple(found) == CLAIMS[name]
