"""Test the networks: parameter counts, accepted image sizes, and initial weights as a function of the seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision

from harness.models import MODELS, build_model


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "image_size", "expected"),
    [
        ("resnet20", 10, 32, 269_722),  # He et al.: 0.27 M
        ("resnet32", 10, 32, 464_154),  # 0.46 M
        ("resnet56", 10, 32, 853_018),  # 0.85 M
        ("resnet110", 10, 32, 1_727_962),  # 1.7 M
        ("resnet20_skipinit", 10, 32, 269_043),  # ResNet-20's weights, biases instead of BatchNorm, 9 scalars
        ("resnet50", 1000, 224, 25_557_032),
        ("resnet50_cifar", 100, 32, 23_705_252),
        ("mlp_mixer", 1000, 224, 7_786_968),
        ("mlp_mixer_wide", 1000, 224, 27_338_520),  # timm's MlpMixer at patch 16, width 512, depth 12
        ("mobilenet_v2", 1000, 224, 3_504_872),  # torchvision's documentation
        # the next three are from the paper's scripts
        ("mobilenet_v2_cifar", 100, 32, 2_412_212),
        ("shufflenet_cifar", 100, 32, 1_012_108),
        # the scripts' 3,628,576 includes an unused 1×1 convolution 32 → 32 with BatchNorm in the first block
        ("efficientnet_b0_cifar", 100, 32, 3_628_576 - (32 * 32 + 2 * 32)),
        ("vgg11_bn_cifar", 10, 32, 9_231_114),  # the common implementation for CIFAR-10
    ],
)
def test_number_of_parameters(name, num_classes, image_size, expected):
    assert count(build_model(name, num_classes=num_classes, channels=3, image_size=image_size)) == expected


# networks for small images, each with a small width to save time
SMALL = {
    "resnet8": 8,
    "resnet14": 8,
    "resnet20": 8,
    "resnet32": 8,
    "resnet56": 8,
    "resnet110": 8,
    "resnet20_skipinit": 8,
    "mlp_mixer_small": 8,
    "mobilenet_v2_cifar": 8,
    "efficientnet_b0_cifar": 8,
    "efficientnet_b0_cifar_drop_connect": 8,
    "shufflenet_cifar": 36,
    "vgg11_bn_cifar": 8,
    "vit_tiny": 8,
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("image_size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
def test_small_networks_accept_every_small_image_size(name, image_size, channels):
    torch.manual_seed(0)
    model = build_model(name, num_classes=7, channels=channels, image_size=image_size, width=SMALL[name])
    logits = model(torch.randn(3, channels, image_size, image_size))
    assert logits.shape == (3, 7)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_weights_are_a_function_of_the_seed_and_keys_are_plain(name):
    size = 32
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_model(name, num_classes=4, channels=1, image_size=size).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert f"{MODELS[name].classifier}.weight" in first
    assert all(type(tensor) is torch.Tensor for tensor in first.values())


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "mlp_mixer", "mlp_mixer_wide"])
def test_imagenet_networks_accept_images_of_224(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=1000, channels=3, image_size=224).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()


def test_width_multiplies_the_channels():
    narrow = build_model("resnet20", num_classes=10, channels=3, image_size=32)
    wide = build_model("resnet20", num_classes=10, channels=3, image_size=32, width=32)
    assert narrow.conv1.weight.shape[0] == 16
    assert wide.conv1.weight.shape[0] == 32
    assert wide.fc.weight.shape[1] == 128


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    model = build_model("resnet8", num_classes=2, channels=1, image_size=8, width=4).eval()
    block = model.layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)  # the output is then only the shortcut
    x = torch.rand(2, 4, 8, 8)
    expected = torch.zeros(2, 8, 4, 4)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_resnet50_is_torchvisions_own_bit_for_bit():
    torch.manual_seed(5)
    ours = build_model("resnet50", num_classes=10, channels=3, image_size=224)
    torch.manual_seed(5)
    theirs = torchvision.models.resnet50(num_classes=10)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_resnet50_cifar_keeps_the_resolution_of_its_stem():
    model = build_model("resnet50_cifar", num_classes=10, channels=3, image_size=32).eval()
    with torch.no_grad():
        stem = model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32)))
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert stem.shape == (1, 64, 32, 32)


@pytest.mark.parametrize(("name", "tokens", "channels"), [("mlp_mixer", 784, 256), ("mlp_mixer_wide", 256, 2048)])
def test_hidden_sizes_of_the_mixers(name, tokens, channels):
    """Check the sizes of the paper's scripts (`mlp_mixer`) and of Mixer-S (`mlp_mixer_wide`).

    Mixer-S is in table 1 of Tolstikhin et al. Both have patch 16, width 512 and depth 12.
    """
    with torch.device("meta"):
        model = build_model(name, num_classes=1000, channels=3, image_size=224)
    assert model.stem.proj.weight.shape == (512, 3, 16, 16) and len(model.blocks) == 12
    for block in model.blocks:
        assert block.mlp_tokens.fc1.weight.shape == (tokens, 14 * 14)
        assert block.mlp_channels.fc1.weight.shape == (channels, 512)


def test_mixer_mixes_tokens_with_tokens_and_channels_with_channels():
    torch.manual_seed(0)
    block = build_model("mlp_mixer_small", num_classes=2, channels=1, image_size=8).blocks[0]
    x = torch.randn(1, 16, 128, requires_grad=True)
    tokens_only = block.mlp_tokens(x.transpose(1, 2)).transpose(1, 2)
    reached = torch.autograd.grad(tokens_only[0, 3, 5], x)[0][0] != 0
    assert reached[:, 5].all()
    assert reached.sum() == 16
    channels_only = block.mlp_channels(x)
    reached = torch.autograd.grad(channels_only[0, 3, 5], x)[0][0] != 0
    assert reached[3].all()
    assert reached.sum() == 128


def test_an_unknown_name_lists_known_names_and_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"unknown model 'res-net20' \(did you mean 'resnet20'\?\); known: efficientnet_b0_cifar, effi",
    ):
        build_model("res-net20", num_classes=10, channels=3, image_size=32)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("resnet50", {"width": 32}, "width of resnet50 cannot be set"),
        ("resnet20", {"width": 0}, "width of resnet20 must be at least 1, got 0"),
        ("resnet20", {"num_classes": 0}, "num_classes of resnet20 must be at least 1, got 0"),
        ("mlp_mixer", {"image_size": 28}, "multiple of its patch size 16, got 28; .* mlp_mixer_small"),
        ("mlp_mixer_small", {"image_size": 3}, "at least 4×4 pixels, got 3"),
        ("vit_tiny", {"image_size": 6}, "at least 7×7 pixels, got 6"),
        ("vit_tiny", {"width": 129}, "width 129 of vit_tiny is not divisible by its 2 heads"),
        ("shufflenet_cifar", {"width": 100}, "a multiple of 12 above 24, got 100"),
        ("mobilenet_v2", {"width": 16}, "width of mobilenet_v2 cannot be set"),
        (
            "resnet8",
            {"width": 10**6},
            r"width 1000000 of resnet8 is too large: [0-9,]+ parameters need .* --model.width",
        ),
        ("mobilenet_v2_cifar", {"width": 10**6}, "width 1000000 of mobilenet_v2_cifar is too large"),
        ("mlp_mixer_small", {"width": 10**6}, "width 1000000 of mlp_mixer_small is too large"),
        ("resnet20", {"width": 10**10}, "width 10000000000 of resnet20 is too large"),
        ("resnet20", {"width": 10**19}, "width 10000000000000000000 of resnet20 is too large"),
    ],
)
def test_invalid_sizes_are_refused(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **({"num_classes": 10, "channels": 1, "image_size": 32} | sizes))
