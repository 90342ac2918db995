"""Test the partition of parameters by module type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.models import MODELS, ParamPartition, build_model, partition_of


def numel(model: nn.Module, names: frozenset[str]) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name in names)


def test_resnet50_on_imagenet():
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    partition = partition_of("resnet50", model)
    assert numel(model, partition.prunable) == 23_454_912
    assert numel(model, partition.norm) == 53_120
    assert {
        "layer1.0.downsample.1.weight",
        "layer1.0.downsample.1.bias",
    } <= partition.norm  # the name has no "bn"
    assert "layer1.0.downsample.0.weight" in partition.prunable
    assert partition.other == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("name", "prunable"),
    [
        ("mobilenet_v2_cifar", 2_249_024),
        ("shufflenet_cifar", 879_288),
        ("efficientnet_b0_cifar", 3_547_616 - 32 * 32),  # see test_number_of_parameters
    ],
)
def test_prunable_weights_of_the_papers_scripts(name, prunable):
    model = build_model(name, num_classes=100, channels=3, image_size=32)
    assert numel(model, partition_of(name, model).prunable) == prunable


@pytest.mark.parametrize("name", sorted(MODELS))
def test_norm_parameters_are_all_those_of_normalisation_layers(name):
    """Compare with the norm layers found by class name, also in shortcuts."""
    model = build_model(name, num_classes=10, channels=3, image_size=32)
    layers = {n: m for n, m in model.named_modules() if type(m).__name__ in ("BatchNorm2d", "LayerNorm")}
    assert partition_of(name, model).norm == {f"{n}.{p}" for n in layers for p in ("weight", "bias")}
    assert (len(layers) == 0) == (name == "resnet20_skipinit")
    if name == "mobilenet_v2_cifar":
        assert sum("shortcut" in n for n in layers) == 4  # 32 → 16 → 24, 64 → 96, 160 → 320 channels


def test_attention_of_the_vit_is_prunable_and_its_tokens_are_not():
    model = build_model("vit_tiny", num_classes=10, channels=3, image_size=32)
    partition = partition_of("vit_tiny", model)
    attention = "encoder.layers.encoder_layer_3.self_attention"
    assert {f"{attention}.in_proj_weight", f"{attention}.out_proj.weight", "conv_proj.weight"} <= partition.prunable
    assert {"class_token", "encoder.pos_embedding", "heads.head.weight"} <= partition.other


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_is_in_exactly_one_set(name):
    model = build_model(name, num_classes=10, channels=3, image_size=32)
    partition = partition_of(name, model)
    sets = (partition.prunable, partition.norm, partition.other)
    assert sorted(n for s in sets for n in s) == sorted(n for n, _ in model.named_parameters())
    assert f"{MODELS[name].classifier}.weight" in partition.other
    assert all(dict(model.named_parameters())[n].dim() >= 2 for n in partition.prunable)


def test_mixer_norms_are_layer_norms():
    model = build_model("mlp_mixer_small", num_classes=10, channels=1, image_size=8)
    partition = partition_of("mlp_mixer_small", model)
    assert {"blocks.0.norm1.weight", "norm.bias"} <= partition.norm
    assert {"stem.proj.weight", "blocks.3.mlp_tokens.fc2.weight"} <= partition.prunable


class RenamedBatchNorm(nn.BatchNorm2d):
    """A subclass like timm's BatchNormAct2d, whose activation has its own parameter."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.PReLU()


def test_norm_layers_are_found_by_type_not_by_name():
    model = nn.ModuleDict(
        {
            "a": RenamedBatchNorm(4),
            "b": nn.SyncBatchNorm(4),
            "c": nn.GroupNorm(2, 4),
            "d": nn.InstanceNorm2d(4, affine=True),
            "e": nn.RMSNorm(4),
            "f": nn.BatchNorm1d(4, affine=False),
            "norm": nn.Linear(4, 4),  # named like a norm layer
            "head": nn.Linear(4, 2),
        }
    )
    partition = ParamPartition.of(model, "head")
    assert partition.norm == {
        *("a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias", "d.weight", "d.bias"),
        "e.weight",
    }
    assert partition.prunable == {"norm.weight"}
    assert partition.other == {"a.act.weight", "norm.bias", "head.weight", "head.bias"}


def test_attention_projections_are_prunable():
    model = nn.ModuleDict(
        {
            "one": nn.MultiheadAttention(8, 2),
            "three": nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
            "head": nn.Linear(8, 2),
        }
    )
    partition = ParamPartition.of(model, "head")
    assert partition.prunable == {
        *("one.in_proj_weight", "one.out_proj.weight"),
        *("three.q_proj_weight", "three.k_proj_weight", "three.v_proj_weight", "three.out_proj.weight"),
    }
    assert "one.in_proj_bias" in partition.other


def test_the_classifier_is_excluded_by_name_not_by_width():
    model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    assert ParamPartition.of(model, "1").prunable == {"0.weight", "2.weight"}
    assert ParamPartition.of(model, "2").prunable == {"0.weight", "1.weight"}


def test_a_shared_parameter_is_listed_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert ParamPartition.of(model, "2").prunable == {"0.weight"}


def test_parameters_shared_with_the_classifier_are_not_pruned():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert ParamPartition.of(model, "1") == ParamPartition(
        frozenset(), frozenset(), frozenset({"0.weight", "0.bias", "1.bias"})
    )


def test_a_shared_module_is_listed_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))
    assert ParamPartition.of(model, "3").prunable == {"0.weight"}
    assert ParamPartition.of(model, "3").other == {"0.bias", "3.weight", "3.bias"}


def test_a_parameter_of_two_roles_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[1].bias = model[0].bias
    with pytest.raises(ValueError, match=r"0.bias is other, 1.bias is norm"):
        ParamPartition.of(model, "2")


def test_a_reparametrised_weight_is_refused():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0 .* has no plain weight"):
        ParamPartition.of(model, "1")


@pytest.mark.parametrize("name", ["fc", "", "1.weight"])
def test_an_unknown_classifier_is_refused(name):
    with pytest.raises(ValueError, match=f"no classifier '{name}' in Sequential; its modules: 0, 1"):
        ParamPartition.of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), name)


def test_a_classifier_without_parameters_is_refused():
    with pytest.raises(ValueError, match="has no parameters"):
        ParamPartition.of(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "1")


def test_overlapping_sets_are_refused():
    with pytest.raises(ValueError, match="these have two: a"):
        ParamPartition(frozenset({"a"}), frozenset({"a"}), frozenset({"b"}))
