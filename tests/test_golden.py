"""Compare every random stream and every boundary rule with numbers that were written down once.

The product and `verify` share seeds.py, so neither can find a fault in it. The numbers below come from
tests/golden_reference.py, which shares no code with the harness. Another number would silently change results.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.seeds import SgdNoise, alpha_mean
from harness.config import GemMinerConfig, SearchConfig
from harness.data import augment
from harness.masks import Mask, SignedMask, transfer
from harness.pruning import METHODS, LevelContext, PruningSchedule, keep_largest, prune
from harness.pruning.gem_miner import ScoreTraining, choose_images, draw_scores, effective, freeze_lowest
from harness.pruning.wr import RewindPoint
from tests import golden_reference as reference
from tests.data import keyed_reference
from tests.models.drawing import draw_model

Scope = tuple[str | int, ...]

# ---------------------------------------------------------------------- streams of sgd_seed

# scope: for epochs 0 and 1 the first three α, and the order of eight images, all with sgd_seed 1
EPOCHS: dict[Scope, list[tuple[list[float], list[int]]]] = {
    ("search", 0): [
        ([0.7763179826527559, 0.8253484992210017, 0.5712635741534818], [4, 5, 2, 0, 1, 6, 7, 3]),
        ([0.6737624680693476, 0.306578748973132, 0.27222958385390694], [4, 5, 3, 6, 7, 2, 1, 0]),
    ],
    ("search", 1): [
        ([0.7982185866164013, 0.10161881626221647, 0.42138500023944203], [5, 1, 3, 2, 6, 7, 0, 4]),
        ([0.5474073004889004, 0.3932737747181315, 0.01044264800371475], [7, 6, 3, 2, 4, 0, 1, 5]),
    ],
    ("search", 1, "again"): [
        ([0.39918951151032644, 0.29195989080992824, 0.841567499676946], [3, 4, 0, 2, 7, 5, 1, 6]),
        ([0.7537683408517087, 0.5748124721833963, 0.5481985153767229], [4, 7, 3, 1, 0, 2, 6, 5]),
    ],
    ("search",): [
        ([0.7738092840492048, 0.3184772960984177, 0.9691227760435075], [7, 5, 0, 6, 2, 4, 3, 1]),
        ([0.1783327161779873, 0.4225862026794305, 0.7157904841670836], [1, 6, 5, 2, 4, 0, 7, 3]),
    ],
    ("final",): [
        ([0.13956777998676062, 0.950932571378855, 0.056551159253241834], [1, 2, 6, 5, 3, 0, 7, 4]),
        ([0.7725288627819634, 0.18589902709108597, 0.8330335106697797], [2, 3, 6, 4, 5, 1, 0, 7]),
    ],
    ("search", 4, "scores"): [
        ([0.4106430137325283, 0.14298043556278328, 0.4287364199197572], [0, 4, 3, 5, 2, 6, 1, 7]),
        ([0.706710834719864, 0.7767337930064858, 0.0766426903435361], [4, 3, 0, 2, 6, 7, 1, 5]),
    ],
}


@pytest.mark.parametrize("scope", EPOCHS, ids=str)
def test_alpha_and_order_of_each_scope_and_epoch(scope: Scope) -> None:
    noise = SgdNoise(1, scope)
    for epoch, (alphas, order) in enumerate(EPOCHS[scope]):
        assert reference.stream(1, *scope, "alpha", epoch).random(3).tolist() == alphas
        assert reference.stream(1, *scope, "order", epoch).permutation(8).tolist() == order
        assert noise.alphas(epoch, 3).tolist() == alphas
        assert noise.permutation(epoch, 8).tolist() == order and noise.permutation(epoch, 8).dtype == np.int64


def test_the_mean_alpha_is_rounded_once() -> None:
    assert alpha_mean(np.array([1.0, 1e-16, 1e-16, 1e-16])) == 0.25000000000000006
    assert sum([1.0, 1e-16, 1e-16, 1e-16]) / 4 == 0.25, "a plain sum loses the small values"


@pytest.mark.parametrize(
    ("method", "level", "again", "scope"),
    [
        *(
            (method, level, False, ("search", level))
            for method in ("aws", "lrr", "random", "dense")
            for level in (0, 1)
        ),
        ("lrr_bn_rewind", 1, False, ("search", 1)),
        ("aws", 1, True, ("search", 1, "again")),
        *((method, level, False, ("search",)) for method in ("imp", "wr", "snip") for level in (0, 2)),
    ],
)
def test_the_scope_of_each_level(method: str, level: int, again: bool, scope: Scope) -> None:
    config = cast(SearchConfig, SimpleNamespace(sgd_seed=7, alpha="uniform"))
    noise = METHODS[method].noise(config, level, again=again)
    assert (noise.sgd_seed, noise.scope) == (7, scope)


# (level, tensor): numbers in [0, 1) that rank the weights of a (2, 2) tensor under sgd_seed 1
RANKING = {
    (1, "a"): [0.32385027408599854, 0.04376572370529175, 0.28397756814956665, 0.7531329393386841],
    (1, "b"): [0.7348331212997437, 0.22563797235488892, 0.4996434450149536, 0.7084541916847229],
    (2, "a"): [0.7024075388908386, 0.006542325019836426, 0.19849753379821777, 0.9006394147872925],
    (2, "b"): [0.534611701965332, 0.7506614327430725, 0.08940428495407104, 0.8802526593208313],
}


@pytest.mark.parametrize("level", [1, 2])
def test_the_ranking_of_random_pruning(level: int) -> None:
    mask = Mask({name: torch.ones(2, 2, dtype=torch.bool) for name in ("b", "a")})
    ctx = SimpleNamespace(config=SimpleNamespace(sgd_seed=1), level=level, mask=mask)
    found = METHODS["random"].importance(cast(LevelContext, ctx))
    for name in ("a", "b"):
        drawn = reference.stream(1, "search", level, "random_pruning", name).random((2, 2), dtype=np.float32)
        assert drawn.ravel().tolist() == RANKING[level, name]
        assert found[name].flatten().tolist() == RANKING[level, name] and found[name].shape == (2, 2)


def test_the_images_of_gem_miner() -> None:
    golden = {1: [0, 7, 9, 13, 14, 17], 2: [1, 6, 8, 10, 11, 19]}
    for seed, images in golden.items():
        assert sorted(reference.stream(seed, "gem_miner", "images").permutation(20)[:6].tolist()) == images
        assert choose_images(6, seed, 20).tolist() == images


# ---------------------------------------------------------------------- streams of init_seed

# (init_seed, tensor): signs of a (2, 4) tensor, and the three positions of eight that are kept
CONTROLS = {
    (2, "a"): ([1, -1, -1, -1, -1, -1, 1, -1], [0, 2, 5]),
    (2, "b"): ([-1, -1, -1, -1, -1, 1, 1, -1], [1, 2, 4]),
    (3, "a"): ([1, -1, 1, 1, 1, -1, -1, -1], [1, 5, 6]),
    (3, "b"): ([1, -1, -1, 1, 1, 1, 1, 1], [0, 1, 4]),
}


@pytest.mark.parametrize("seed", [2, 3])
def test_random_signs_of_each_tensor(seed: int) -> None:
    theta = {name: torch.full((2, 4), 0.5) for name in ("b", "a")}
    full = SignedMask.of(theta, Mask.dense(theta, theta))
    start, mask = transfer.start("random_signs", theta, theta, full, seed=seed)
    for name in ("a", "b"):
        signs = CONTROLS[seed, name][0]
        assert (reference.stream(seed, "random_signs", name).integers(0, 2, 8) * 2 - 1).tolist() == signs
        assert (start[name].flatten() * 2).tolist() == signs
    assert mask.equal(full.mask)


@pytest.mark.parametrize("seed", [2, 3])
def test_the_random_mask_of_each_trial_and_tensor(seed: int) -> None:
    theta = {name: torch.ones(2, 4) for name in ("b", "a")}
    first_three = (torch.arange(8) < 3).reshape(2, 4)
    ticket = SignedMask.of(theta, Mask(dict.fromkeys(theta, first_three)))
    start, mask = transfer.start("random_mask", theta, theta, ticket, seed=seed)
    for name in ("a", "b"):
        kept = CONTROLS[seed, name][1]
        assert reference.kept_at_random(seed, name, 8, 3) == kept
        assert mask.tensors[name].flatten().nonzero().flatten().tolist() == kept
        assert torch.equal(start[name] != 0, mask.tensors[name])


def test_the_scores_of_gem_miner() -> None:
    golden = {
        (1, "a"): [0.5459510087966919, 0.6714155077934265, 0.5482965111732483],
        (1, "b"): [0.5926920771598816, 0.19197028875350952, 0.6750633716583252],
        (2, "a"): [0.5535745620727539, 0.7307983636856079, 0.043842852115631104],
        (2, "b"): [0.29939013719558716, 0.7801303267478943, 0.4889722466468811],
    }
    for (seed, name), scores in golden.items():
        assert reference.stream(seed, "scores", name).random(3, dtype=np.float32).tolist() == scores
        assert draw_scores(dict.fromkeys(("b", "a"), torch.Size([3])), seed)[name].tolist() == scores


def test_the_seed_of_the_initial_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for init_seed in (1, 2):
        draw_model("resnet8", init_seed=init_seed, num_classes=2, channels=1, image_size=8, width=2)
    assert seeds == [9150489900168326187, 2525391309894236287]
    assert seeds == [reference.stream_key(init_seed, "init") >> 1 for init_seed in (1, 2)]


# ---------------------------------------------------------------------- which weights are kept


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("count", range(9))
def test_ties_go_to_the_earlier_name_whatever_the_order_of_the_tensors(order: str, count: int) -> None:
    rows = {"a": [1.0, -2.0, 1.0, 2.0], "b": [2.0, 1.0, -1.0, 1.0]}
    values = {name: torch.tensor(rows[name]).reshape(2, 2) for name in order}
    golden = reference.kept_by_rank({name: [abs(value) for value in row] for name, row in rows.items()}, count)
    found = keep_largest({name: value.abs() for name, value in values.items()}, Mask.dense(values, order), count)
    other_order = Mask({name: torch.ones(2, 2, dtype=torch.bool) for name in order})
    again = keep_largest({name: values[name].abs() for name in reversed(order)}, other_order, count)
    for name in "ab":
        assert found.tensors[name].flatten().tolist() == golden[name]
        assert again.tensors[name].flatten().tolist() == golden[name]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_five_equal_weights(order: str) -> None:
    """Two of five remain: in the first tensor by name, and there the first two."""
    values = {name: torch.ones(5 if name == "a" else 3) for name in order}
    mask = Mask({name: torch.tensor([False, True, True, True, False][: len(values[name])]) for name in order})
    assert prune(values, mask, 0.6).tensors["a"].tolist() == [False, True, True, False, False]
    assert not prune(values, mask, 0.6).tensors["b"].any()


def test_more_weights_than_are_alive_cannot_be_kept() -> None:
    mask = Mask({"w": torch.tensor([True, False, True, True])})
    assert keep_largest({"w": torch.tensor([3.0, 9.0, 1.0, 2.0])}, mask, 4).equal(mask)
    with pytest.raises(ValueError, match="cannot keep -1 weights"):
        keep_largest({"w": torch.zeros(4)}, mask, -1)
    with pytest.raises(ValueError, match="keeps 4 weights, but only 3 are alive"):
        PruningSchedule(0.2, densities=(1.0,)).counts(1, mask)


def test_each_layer_is_pruned_by_itself_and_one_shot_equals_all_levels() -> None:
    mask = Mask({"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(5, dtype=torch.bool)})
    assert PruningSchedule(0.5, scope="layer").counts(1, mask) == {"a": 5, "b": 2}
    assert PruningSchedule(0.5).counts(1, mask) == {"": 7}
    assert PruningSchedule(0.5, one_shot=True).counts(3, mask) == {"": 1}, "15, 7, 3, 1"
    assert PruningSchedule(0.5).density(3) == 0.125
    # every layer's density is of all its weights, not of the live ones
    half = Mask({"a": mask.tensors["a"], "b": torch.tensor([True, True, True, True, False])})
    assert PruningSchedule(0.2, densities=(0.9, 0.5), scope="layer").counts(2, half) == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("one", "other", "subset"),
    [
        ([[1, 0, 1]], [[1, 1, 1]], True),
        ([[1, 1, 1]], [[1, 0, 1]], False),
        ([[0, 0, 0]], [[0, 0, 0], [0, 0, 0]], False),  # would broadcast
        ([[1], [1]], [[1, 1], [1, 1]], False),
        ([1, 1], [[1, 1]], False),
    ],
)
def test_a_mask_of_another_shape_is_no_subset(one: list, other: list, subset: bool) -> None:
    small, large = Mask({"w": torch.tensor(one).bool()}), Mask({"w": torch.tensor(other).bool()})
    assert small.issubset(large) == subset
    assert not small.equal(large)
    assert not small.issubset(Mask({"v": torch.tensor(one).bool()})), "another name"
    assert not small.issubset(Mask({**small.tensors, "v": torch.tensor(one).bool()})), "one tensor more"
    assert small.equal(Mask({"w": small.tensors["w"].clone()}))


def test_gem_miner_keeps_scores_above_one_half() -> None:
    just_above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    scores = torch.tensor([0.5, just_above, 1.0, 0.0, 1.0])
    weights, kept = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0]), torch.tensor([True, True, True, True, False])
    expected = [0.0, -2.0, 3.0, 0.0, 0.0]
    assert effective(weights, kept, scores).tolist() == expected
    # the view of a training step
    model = nn.Linear(5, 1, bias=False)
    model.weight.data = scores.reshape(1, 5).clone()
    training = ScoreTraining({"weight": weights.reshape(1, 5)}, ["weight"], 0.5, GemMinerConfig(score_epochs=6))
    training.attach(model)
    training.restore_({"weight": kept.reshape(1, 5)})
    with training.view(0.3):
        assert model.weight.flatten().tolist() == expected
    assert model.weight.flatten().tolist() == scores.tolist()
    assert training.finish(Mask({})).tensors["weight"].flatten().tolist() == kept.tolist()
    assert model.weight.flatten().tolist() == expected


def test_gem_miner_freezes_the_scores_that_equal_the_threshold() -> None:
    mask = Mask({"w": torch.ones(10, dtype=torch.bool)})
    scores = {"w": torch.arange(10) / 10}
    assert freeze_lowest(scores, mask, 0.2).num_remaining == 8
    assert freeze_lowest(scores, mask, 0.21).num_remaining == 7, "the share is rounded up"


# ---------------------------------------------------------------------- signs, and the classifier of another data set


def bits(tensor: torch.Tensor) -> list[tuple[float, bool]]:
    """Return values with their sign bits: −0.0 equals 0.0, but has other bytes."""
    return list(zip(tensor.flatten().tolist(), torch.signbit(tensor).flatten().tolist(), strict=True))


def test_no_tensor_has_a_negative_zero() -> None:
    zero = (0.0, False)
    signed = SignedMask.of(
        {"w": torch.tensor([-1.0, -1.0, 1.0]), "b": torch.tensor([-1.0])},
        Mask({"w": torch.tensor([True, False, True])}),
    )
    theta = {"w": torch.tensor([0.0, -3.0, -0.0]), "b": torch.tensor([-0.0])}
    start = signed.signed(theta)
    assert bits(start["w"]) == [zero, zero, zero] and bits(start["b"]) == [zero]
    masked = {"w": torch.tensor([-1.0, -2.0])}
    Mask({"w": torch.tensor([True, False])}).apply_(masked)
    assert bits(masked["w"]) == [(-1.0, True), zero]
    # checkpoints, also that of the rewind point
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[-0.0, -1.0]])
    assert bits(Checkpoint.of(model, level=0, epochs=0, level_digest="").params["weight"]) == [zero, (-1.0, True)]
    point = RewindPoint(0, 1)
    point.attach(model)
    assert bits(point.params["weight"]) == [zero, (-1.0, True)]


def test_the_classifier_stays_behind_with_its_mask_and_signs() -> None:
    names = ("conv.weight", "fc.weight", "fc.bias", "fc2.weight", "fc2.bias", "bn.weight")
    theta = {name: torch.ones(2) for name in names}
    kept = torch.tensor([True, False])
    whole = SignedMask.of(theta, Mask(dict.fromkeys(("conv.weight", "fc.weight", "fc2.weight"), kept)), ["bn.weight"])
    outside = {which: transfer.unpruned_names(whole, which, "fc") for which in ("both", "biases", "classifier", "none")}
    assert outside == {
        "both": {"fc.bias", "fc2.bias"},
        "biases": {"fc2.bias"},
        "classifier": {"fc.bias"},
        "none": set(),
    }
    rest = transfer.without_classifier(whole, "fc")
    assert rest.signs.keys() == {"conv.weight", "fc2.weight", "fc2.bias", "bn.weight"}
    assert rest.mask.tensors.keys() == {"conv.weight", "fc2.weight"}
    assert rest.norm == {"bn.weight"}
    assert all(torch.equal(rest.signs[name], whole.signs[name]) for name in rest.signs)


def test_two_signed_masks_agree_only_where_both_keep_a_weight() -> None:
    theta = {"w": torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), "b": torch.tensor([1.0, 1.0])}
    other = {"w": torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]), "b": torch.tensor([-1.0, -1.0])}
    a = SignedMask.of(theta, Mask({"w": torch.tensor([True, True, True, False, False])}))
    b = SignedMask.of(other, Mask({"w": torch.tensor([True, True, False, True, False])}))
    assert a.agreement(b) == 0.5, "biases have no mask and do not count"
    assert a.num_zero_signs == 0


def test_a_ticket_right_after_pruning_has_no_pruned_weight() -> None:
    before = {"w": torch.tensor([-1.0, -2.0, 3.0]), "b": torch.tensor([-4.0])}
    ticket = SignedMask.of(before, Mask({"w": torch.tensor([True, False, True])}), ["b"])
    params, signed = transfer.pruned_ticket(before, ticket)
    assert bits(params["w"]) == [(-1.0, True), (0.0, False), (3.0, False)] and bits(params["b"]) == [(-4.0, True)]
    assert signed.signs["w"].tolist() == [-1, 0, 1] and signed.norm == {"b"}
    assert before["w"].tolist() == [-1.0, -2.0, 3.0]


# ---------------------------------------------------------------------- augmentation


def test_crops_and_flips_of_one_key() -> None:
    key, indices = 900627761886755983, [0, 1, 2, 59_999]
    golden = [(2, 3, 1), (1, 7, 1), (0, 1, 0), (2, 3, 1)]
    draws = [[keyed_reference.draw(key, index, number) for number in range(3)] for index in indices]
    assert [((top >> 32) * 9 >> 32, (left >> 32) * 9 >> 32, flip & 1) for top, left, flip in draws] == golden
    top, left, flip = augment.crop_flips(key, np.array(indices), padding=4)
    assert list(zip(top.tolist(), left.tolist(), flip.astype(int).tolist(), strict=True)) == golden
    assert augment.flips(key, np.array(indices)).tolist() == [bool(one[2]) for one in golden]


def extreme_draw(word: int) -> Any:
    """Return a `draw` that gives the same word for every draw."""
    return lambda key, index, number: np.uint64(word)


@pytest.mark.parametrize(("word", "corner", "flip"), [(0, 0, 0), (2**64 - 1, 8, 1), (2**63, 4, 0), (2**63 - 1, 4, 1)])
def test_a_crop_begins_between_0_and_twice_the_padding(word: int, corner: int, flip: int) -> None:
    formula = augment.crop_flip_formula.__wrapped__(extreme_draw(word))
    assert [int(value) for value in formula(np.uint64(0), np.uint64(0), np.uint64(4))] == [corner, corner, flip]


# (draws, height, width, scale, ratio): the box (top, left, height, width)
BOXES: list[tuple[int, int, int, tuple[float, float], tuple[float, float], tuple[int, int, int, int]]] = [
    (0, 8, 8, (1.0, 1.0), (1.0, 1.0), (0, 0, 8, 8)),  # as large as the image: allowed
    (0, 8, 8, (1.3, 1.3), (1.0, 1.0), (0, 0, 8, 8)),  # too large in all tries: the whole image
    (0, 8, 16, (1.0, 1.0), (2.0, 2.0), (0, 0, 8, 16)),
    (2**64 - 1, 8, 8, (0.25, 0.25), (1.0, 1.0), (4, 4, 4, 4)),  # the last possible place
    (0, 8, 8, (0.25, 0.25), (1.0, 1.0), (0, 0, 4, 4)),
    (0, 8, 8, (0.001, 0.001), (1.0, 1.0), (0, 0, 8, 8)),  # a box of 0 pixels is none
    (2**64 - 1, 8, 8, (0.5, 0.5), (2.0, 2.0), (4, 0, 4, 8)),  # as wide as the image, at the last place
    (2**64 - 1, 8, 8, (0.5, 0.5), (0.5, 0.5), (0, 4, 8, 4)),  # as high as the image
    (0, 8, 8, (1 / 64, 1 / 64), (1 / 16, 1 / 16), (0, 3, 8, 1)),  # a box of no width is none
    (0, 8, 8, (1 / 64, 1 / 64), (16.0, 16.0), (3, 0, 1, 8)),  # a box of no height is none
    (0, 10, 4, (4.0, 4.0), (1.0, 1.0), (3, 0, 4, 4)),  # too tall: centred, with the smallest ratio
    (0, 4, 10, (4.0, 4.0), (1.0, 1.0), (0, 3, 4, 4)),  # too wide: centred, with the largest ratio
    (0, 4, 11, (4.0, 4.0), (0.5, 2.0), (0, 1, 4, 8)),
    (0, 11, 4, (4.0, 4.0), (0.5, 2.0), (1, 0, 8, 4)),
    (0, 1, 9, (4.0, 4.0), (0.1, 0.3), (0, 4, 1, 1)),  # never narrower than one pixel
    (0, 9, 1, (4.0, 4.0), (3.0, 9.0), (4, 0, 1, 1)),  # never lower than one pixel
]


@pytest.mark.parametrize("row", BOXES, ids=str)
def test_a_box_at_its_limits(row: tuple) -> None:
    word, height, width, scale, ratio, expected = row
    formula = augment.resized_crop_formula(extreme_draw(word))
    assert tuple(int(n) for n in formula(np.uint64(0), np.uint64(0), height, width, scale, ratio)) == expected


@pytest.mark.parametrize("row", [row for row in BOXES if row[1] == row[2]], ids=str)
def test_so_is_a_box_of_many(row: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    word, height, width, scale, ratio, expected = row
    monkeypatch.setattr(augment, "draw", lambda key, index, number: np.full_like(index + np.uint64(0), word))
    found = augment.resized_crop_boxes(0, np.arange(3), height, scale, ratio)
    assert [tuple(box) for box in found.tolist()] == [expected] * 3


def test_the_tries_of_a_box_have_draws_of_their_own() -> None:
    seen: list[int] = []

    def draw(key: Any, index: Any, number: Any) -> np.uint64:
        seen.append(int(number))
        return np.uint64(0)

    augment.resized_crop_formula(draw)(np.uint64(0), np.uint64(0), 8, 8, (4.0, 4.0), (1.0, 1.0))
    assert seen == [4 + 4 * attempt + number for attempt in range(10) for number in (0, 1)]


@pytest.mark.parametrize("size", [4, 5])
def test_the_places_of_an_enlargement(size: int) -> None:
    low, weight = augment.enlargement(size)
    for side in range(1, size + 1):
        for pixel in range(size):
            at = min(max(Fraction((2 * pixel + 1) * side, 2 * size) - Fraction(1, 2), Fraction(0)), Fraction(side - 1))
            assert (low[side, pixel], weight[side, pixel]) == (floor(at), (at - floor(at)) * 2 * size)


def test_the_centre_of_an_image() -> None:
    golden = {
        (256, 300): (16, 38, 224, 224),
        (8, 8): (0, 0, 7, 7),
        (1, 9): (0, 4, 1, 1),
        (257, 400): (16, 88, 224, 224),
    }
    assert {size: augment.center_crop(*size, 224, 256) for size in golden} == golden
