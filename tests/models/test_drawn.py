"""Test the initialisation of networks for small images.

Some networks changed to torch's default initialisation. `former=True` reproduces the initialisation of older runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

from harness.common.seeds import derive_seed
from harness.config import REDRAWN, drawn_before
from harness.models import MODELS
from harness.models.efficientnet import DROP_CONNECT
from tests.models.drawing import draw_model

SIZES = {"num_classes": 10, "channels": 3, "image_size": 32}
WHOLE = ("mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def stock(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Return a new layer of the same shape with torch's default initialisation."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=bias)
    shape = layer.in_channels, layer.out_channels, layer.kernel_size
    return nn.Conv2d(*shape, stride=layer.stride, padding=layer.padding, groups=layer.groups, bias=bias)


def check_drawn_alike(drawn: Tensor, fresh: Tensor, bound: float) -> None:
    assert drawn.unique().numel() > 0.9 * drawn.numel(), "values must be random"
    # of n uniform draws, the sample sd has standard error 0.447·sd/√n, and the mean 0.577·bound/√n
    spread = 2.5 / math.sqrt(drawn.numel())
    for values in (drawn, fresh):
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=spread)
        assert bound * (1 - 2 * spread**2) <= float(values.abs().max()) <= bound
        assert abs(float(values.mean())) < spread * bound


@pytest.mark.parametrize("name", WHOLE)
def test_every_layer_has_torchs_default_initialisation(name: str) -> None:
    torch.manual_seed(7)
    count = 0
    for _, layer in layers(draw_model(name, init_seed=3, **SIZES)):
        fresh, bound = stock(layer), 1 / math.sqrt(layer.weight[0].numel())
        check_drawn_alike(layer.weight.detach(), fresh.weight.detach(), bound)
        if layer.bias is not None:
            check_drawn_alike(layer.bias.detach(), fresh.bias.detach(), bound)
        count += 1
    assert count > 30


def test_only_the_small_stem_of_resnet50_has_torchs_default_initialisation() -> None:
    torch.manual_seed(7)
    model = draw_model("resnet50_cifar", init_seed=3, **SIZES)
    stem = dict(layers(model))["conv1"]
    weight, fresh = stem.weight.detach(), stock(stem).weight.detach()
    check_drawn_alike(weight, fresh, 1 / math.sqrt(27))
    assert float(weight.std()) == pytest.approx(float(fresh.std()), rel=0.06)
    assert float(weight.std()) == pytest.approx(0.577 / math.sqrt(27), rel=0.05)
    seeded(3)
    theirs = torchvision.models.resnet50(num_classes=10).state_dict()
    assert [n for n, own in model.state_dict().items() if not torch.equal(own, theirs[n])] == ["conv1.weight"]


def test_drop_connect_does_not_change_the_initialisation() -> None:
    sizes = SIZES | {"width": 8}
    with_it, without = (
        draw_model(f"efficientnet_b0_cifar{name}", init_seed=3, **sizes) for name in ("_drop_connect", "")
    )
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


# ---------------------------------------------------------------------- initialisation of older runs


def seeded(init_seed: int) -> None:
    """Seed torch's generator as `draw_model` does for `init_seed`."""
    torch.manual_seed(derive_seed(init_seed, "init") >> 1)


def kaiming_over_the_network(name: str) -> list[Tensor]:
    """Build a network, then redraw each weight from N(0, 2/fan_in).

    Weights are drawn in the order of the modules.

    Returns:
        The tensors of the state dict.
    """
    seeded(3)
    model = MODELS[name].build(**SIZES)
    for _, layer in layers(model):
        nn.init.kaiming_normal_(layer.weight)
    return list(model.state_dict().values())


def torchvisions_stem() -> list[Tensor]:
    seeded(3)
    model = torchvision.models.resnet50(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return list(model.state_dict().values())


def torchvisions_efficientnet() -> list[Tensor]:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    seeded(3)
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3)]
    stages += [(6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1)]
    model = EfficientNet([MBConvConfig(*stage) for stage in stages], 0.2, 0.2, num_classes=10)
    model.features[0][0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.features[0][0].weight, mode="fan_out", nonlinearity="relu")
    del model.features[-1]
    model.classifier[1] = nn.Linear(320, 10)
    return list(model.state_dict().values())


@pytest.mark.parametrize("name", REDRAWN)
def test_the_initialisation_of_older_runs_is_reproduced_bit_for_bit(name: str) -> None:
    old = draw_model(name, init_seed=3, former=True, **SIZES)
    own = {
        "resnet50_cifar": torchvisions_stem,
        "efficientnet_b0_cifar": torchvisions_efficientnet,
    }.get(name, lambda: kaiming_over_the_network(name))()
    assert all(torch.equal(one, other) for one, other in zip(old.state_dict().values(), own, strict=True))
    today = draw_model(name, init_seed=3, **SIZES).state_dict()
    assert not all(torch.equal(tensor, today[name]) for name, tensor in old.state_dict().items())
    rates = [m.p for m in old.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert rates == ([DROP_CONNECT * block / 16 for block in range(16)] if "efficientnet" in name else [])


def test_only_these_networks_had_another_initialisation() -> None:
    assert {name for name, spec in MODELS.items() if spec.former is not None} == REDRAWN.keys()
    for name in MODELS:
        assert (drawn_before(name, {}) is None) == (name not in REDRAWN)
        assert drawn_before(name, REDRAWN[name].determinants if name in REDRAWN else {}) is None
        # A scheme of the user replaces the weights, but not the biases, and an old EfficientNet still dropped blocks.
        by_scheme = drawn_before(name, {}, by_scheme=True)
        assert ("drop-connect 0.2" in (by_scheme or "")) == (name == "efficientnet_b0_cifar")
    for name in ("resnet20", "vgg11_bn_cifar", "mlp_mixer_small"):
        old, today = (draw_model(name, init_seed=3, former=former, **SIZES).state_dict() for former in (True, False))
        assert all(torch.equal(old[tensor], today[tensor]) for tensor in today)
