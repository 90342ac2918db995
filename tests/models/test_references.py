"""Compare networks with those of torchvision and timm: equal layers, and equal outputs for equal weights."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from harness.models import build_model
from harness.models.initialise import kaiming_normal_


def images(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def convolutions(model: nn.Module, skipped: tuple[str, ...] = ()) -> list[tuple]:
    """List the convolutions of a network in order.

    Args:
        model: The network.
        skipped: Prefixes of module names to leave out.

    Returns:
        Input channels, output channels, kernel size, groups, dilation, and whether there is no bias.
    """
    return [
        (m.in_channels, m.out_channels, m.kernel_size, m.groups, m.dilation, m.bias is None)
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and not name.startswith(skipped)
    ]


def strides(model: nn.Module) -> list[int]:
    return [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]


def randomise_norms_(model: nn.Module) -> None:
    """Randomise all norm layers, so that none is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01  # the comparison is not trivial
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mobilenet_v2_is_torchvisions_own_bit_for_bit():
    torch.manual_seed(5)
    ours = build_model("mobilenet_v2", num_classes=10, channels=3, image_size=224)
    torch.manual_seed(5)
    theirs = torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert not [m for m in ours.modules() if isinstance(m, nn.Dropout) and m.p]


def test_mobilenet_v2_cifar_has_torchvisions_layers_except_as_documented():
    ours = build_model("mobilenet_v2_cifar", num_classes=10, channels=3, image_size=32)
    theirs = torchvision.models.mobilenet_v2()
    added = ("blocks.0.conv1", *(f"blocks.{index}.shortcut" for index in range(17)))
    assert convolutions(ours, skipped=added) == convolutions(theirs)
    assert strides(theirs)[0] == strides(theirs)[2] == 2  # the stem and the 24-channel stage
    expected = strides(theirs)
    expected[0] = expected[2] = 1
    assert strides(ours) == expected
    assert ours.blocks(ours.conv1(images(32))).shape == (2, 320, 4, 4)


def test_a_mobilenet_block_equals_torchvisions():
    """Compare a block of expansion 6 and stride 1.

    The inputs are so small that torchvision's ReLU6 never clips at 6.
    """
    block = build_model("mobilenet_v2_cifar", num_classes=10, channels=3, image_size=32).blocks[4].eval()
    theirs = torchvision.models.mobilenetv2.InvertedResidual(32, 32, stride=1, expand_ratio=6).eval()
    randomise_norms_(block)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), block.state_dict().values(), strict=True)))
    x = 0.1 * torch.randn(2, 32, 8, 8)
    close(block(x), theirs(x))


def test_efficientnet_is_torchvisions_b0_up_to_its_last_stage():
    torch.manual_seed(0)
    ours = build_model("efficientnet_b0_cifar", num_classes=10, channels=3, image_size=32).eval()
    theirs = torchvision.models.efficientnet_b0()
    kaiming_normal_(ours)  # with its own small weights the outputs would be almost constant
    randomise_norms_(ours)
    own = ours.state_dict()
    features = {name: tensor for name, tensor in theirs.state_dict().items() if name in own and "features" in name}
    assert len(features) == len([name for name in own if "features" in name])
    assert [n for n in theirs.state_dict() if "features" in n and n not in own and "features.8" not in n] == []
    theirs.load_state_dict(own | {n: t for n, t in theirs.state_dict().items() if n not in features})
    theirs.features[0][0].stride = (1, 1)
    x = images(32)
    features_NC = theirs.eval().features[:8](x).mean((2, 3))
    close(ours(x), F.linear(features_NC, own["classifier.1.weight"], own["classifier.1.bias"]))


def test_rates_of_dropout_and_drop_connect():
    """Compare the rates with torchvision's B0.

    The paper's network has only dropout. Torchvision's B0 also has drop-connect.
    """

    def rates(model: nn.Module, kind: type[nn.Module]) -> list[float]:
        return [module.p for module in model.modules() if isinstance(module, kind)]

    def built(name: str) -> nn.Module:
        return build_model(name, num_classes=10, channels=3, image_size=32, width=8)

    theirs, drop_connect = torchvision.models.efficientnet_b0(), torchvision.ops.StochasticDepth
    assert rates(theirs, drop_connect) == [0.2 * block / 16 for block in range(16)]
    plain, dropping = built("efficientnet_b0_cifar"), built("efficientnet_b0_cifar_drop_connect")
    assert rates(plain, nn.Dropout) == rates(dropping, nn.Dropout) == rates(theirs, nn.Dropout) == [0.2]
    assert rates(dropping, drop_connect) == rates(theirs, drop_connect)
    assert rates(plain, drop_connect) == [0.0] * 16
    for name in ("mobilenet_v2_cifar", "resnet50_cifar"):
        model = build_model(name, num_classes=10, channels=3, image_size=32)
        assert rates(model, nn.Dropout) == rates(model, drop_connect) == []


def test_shufflenet_has_the_layers_of_its_papers_table():
    """Check the network against table 1 (3 groups) and figure 2 of the ShuffleNet paper.

    They give the output channels and units of each stage, and the groups of each layer.
    """
    model = build_model("shufflenet_cifar", num_classes=10, channels=3, image_size=32)
    channels = [unit.conv3.out_channels + (unit.conv1.in_channels if unit.stride == 2 else 0) for unit in model.units]
    assert channels == [240] * 4 + [480] * 8 + [960] * 4
    assert [index for index, unit in enumerate(model.units) if unit.stride == 2] == [0, 4, 12]
    for unit, out_channels in zip(model.units, channels, strict=True):
        middle = out_channels // 4
        assert [conv.groups for conv in (unit.conv1, unit.conv2, unit.conv3)] == [3, middle, 3]
        assert unit.conv1.out_channels == unit.conv2.in_channels == unit.conv3.in_channels == middle
    assert model.units(torch.zeros(1, 24, 32, 32)).shape == (1, 960, 4, 4)


def test_a_shuffle_unit_equals_its_written_out_form():
    """Compare a unit with an explicit computation.

    The reference has one dense convolution per group, and shuffles channel by channel.
    """
    torch.manual_seed(0)
    unit = build_model("shufflenet_cifar", num_classes=10, channels=3, image_size=32).units[4].eval()  # 240 → 480
    randomise_norms_(unit)
    x = torch.randn(2, 240, 8, 8)

    def grouped(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
        parts = zip(inputs.chunk(3, 1), conv.weight.chunk(3), conv.bias.chunk(3), strict=True)
        return torch.cat([F.conv2d(part, weight, bias) for part, weight, bias in parts], 1)

    y = F.relu(unit.bn1(grouped(unit.conv1, x)))
    shuffled = torch.stack([y[:, group * 40 + place] for place in range(40) for group in range(3)], 1)
    y = unit.bn3(grouped(unit.conv3, unit.bn2(unit.conv2(shuffled))))
    pooled = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).mean((4, 5))
    close(unit(x), F.relu(torch.cat([pooled, y], 1)))


def test_vgg_has_torchvisions_feature_layers():
    torch.manual_seed(0)
    ours = build_model("vgg11_bn_cifar", num_classes=10, channels=3, image_size=32).eval()
    vgg = torchvision.models.vgg
    theirs = vgg.make_layers(vgg.cfgs["A"], batch_norm=True).eval()  # without the head of 120 M parameters
    randomise_norms_(theirs)
    ours.features.load_state_dict(theirs.state_dict())
    x = images(32)
    close(ours(x), ours.fc(theirs(x).flatten(1)))


def test_vit_is_timms_at_the_size_of_deit_tiny():
    # Phase: compare the parameter count with DeiT-Ti
    torch.manual_seed(0)
    ours = build_model("vit_tiny", num_classes=10, channels=3, image_size=32).eval()
    randomise_norms_(ours)
    full = build_model("vit_tiny", num_classes=1000, channels=3, image_size=224)
    deit = timm.create_model("deit_tiny_patch16_224")
    assert sum(p.numel() for p in full.parameters()) == sum(p.numel() for p in deit.parameters()) == 5_717_416
    # Phase: copy the weights into timm's network under its names
    theirs = VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10).eval()
    names = (
        ("encoder.layers.encoder_layer_", "blocks."),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj", "attn.proj"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.3", "mlp.fc2"),
        ("encoder.ln", "norm"),
        ("encoder.pos_embedding", "pos_embed"),
        ("class_token", "cls_token"),
        ("conv_proj", "patch_embed.proj"),
        ("heads.head", "head"),
    )
    renamed = {}
    for name, tensor in ours.state_dict().items():
        for old, new in names:
            name = name.replace(old, new)
        renamed[name] = tensor
    theirs.load_state_dict(renamed)
    # Phase: compare the outputs
    x = images(32)
    close(ours(x), theirs(x))
    assert ours.heads.head.weight.std() > 0.01  # torchvision initialises it with zeros


def test_mixer_is_timms():
    torch.manual_seed(0)
    ours = build_model("mlp_mixer_small", num_classes=10, channels=3, image_size=32).eval()
    randomise_norms_(ours)
    theirs = MlpMixer(num_classes=10, img_size=32, patch_size=4, num_blocks=4, embed_dim=128, mlp_ratio=(0.5, 2.0))
    theirs.load_state_dict(ours.state_dict())
    x = images(32)
    close(ours(x), theirs.eval()(x))


def test_skipinit_equals_resnet20_with_norms_that_only_scale():
    torch.manual_seed(0)
    ours = build_model("resnet20_skipinit", num_classes=10, channels=3, image_size=32).eval()
    theirs = build_model("resnet20", num_classes=10, channels=3, image_size=32).eval()
    blocks = [*theirs.layer1, *theirs.layer2, *theirs.layer3]
    pairs = [(ours, theirs)] + [(block, blocks[index]) for index, block in enumerate(ours.blocks)]
    with torch.no_grad():
        for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_var.fill_(1 - norm.eps)  # the identity
        for index, (block, reference) in enumerate(pairs):
            reference.conv1.weight.copy_(block.conv1.weight)
            reference.bn1.bias.copy_(block.conv1.bias)
            if index:
                block.scale.fill_(0.1 * index)
                reference.conv2.weight.copy_(block.conv2.weight)
                reference.bn2.weight.fill_(0.1 * index)
                reference.bn2.bias.copy_(0.1 * index * block.conv2.bias)
        theirs.fc.load_state_dict(ours.fc.state_dict())
    x = images(32)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["efficientnet_b0_cifar", "efficientnet_b0_cifar_drop_connect"])
def test_dropout_and_drop_connect_follow_torchs_generator_and_are_off_in_evaluation(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, channels=3, image_size=32, width=8)
    x = images(16, number=8)

    def outputs(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(x).detach()

    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))
    model.eval()
    assert torch.equal(outputs(1), outputs(2))
