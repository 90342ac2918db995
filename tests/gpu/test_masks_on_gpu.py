"""Test that masks and signs are bit-identical on CUDA and CPU."""

from __future__ import annotations

import pytest
import torch

from harness.analysis.barrier import barrier_curve
from harness.checkpoint import Checkpoint
from harness.masks import Mask, SignedMask
from harness.models import partition_of
from harness.pruning import prune
from tests.gpu.gpu_steps import fresh

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def params_of(name: str, device: torch.device) -> tuple[dict[str, torch.Tensor], Mask, torch.nn.Module]:
    model = fresh(name, 32, device)
    params = {key: param.detach() for key, param in model.named_parameters()}
    return (
        params,
        Mask.dense({key: value.cpu() for key, value in params.items()}, partition_of(name, model).prunable),
        model,
    )


@pytest.mark.parametrize(
    "name", ["resnet20", pytest.param("resnet50_cifar", marks=pytest.mark.slow), "mlp_mixer_small"]
)
@pytest.mark.parametrize("ties", [False, True])
def test_prune_keeps_the_same_weights(device, name, ties):
    """Check that both devices keep the same weights, also among ties."""
    kept = {}
    for where in (device, CPU):
        params, mask, _ = params_of(name, where)
        if ties:
            params = {key: (value * 50).round() / 50 for key, value in params.items()}
        masks = [mask]
        for _ in range(3):
            masks.append(prune(params, masks[-1], 0.2))
        kept[where] = masks
    for there, here in zip(kept[device], kept[CPU], strict=True):
        assert there.equal(here) and all(not tensor.is_cuda for tensor in there.tensors.values())
    counts = [mask.num_remaining for mask in kept[device]]
    assert all(after == int(0.8 * before) for before, after in zip(counts, counts[1:], strict=False))


def test_signs_and_signed_parameters_are_the_same(device):
    found = []
    for where in (device, CPU):
        params, mask, model = params_of("resnet20", where)
        signed = SignedMask.of(params, prune(params, mask, 0.9), partition_of("resnet20", model).norm)
        torch.manual_seed(7)
        other = {key: torch.randn(value.shape).to(where) for key, value in params.items()}
        applied = signed.signed(other)
        assert all(tensor.device.type == where.type for tensor in applied.values())
        found.append((signed, {key: value.cpu() for key, value in applied.items()}))
    (there, on_device), (here, on_cpu) = found
    assert there.mask.equal(here.mask) and all(torch.equal(there.signs[key], here.signs[key]) for key in here.signs)
    for key, value in on_cpu.items():
        # compare as integers, so that -0.0 and 0.0 differ
        assert torch.equal(on_device[key].contiguous().view(torch.int32), value.contiguous().view(torch.int32)), key


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_keep_works_with_a_fused_optimizer(device, kind):
    params, mask, _ = params_of("resnet8", device)
    signed = SignedMask.of(params, prune(params, mask, 0.5))
    torch.manual_seed(1)
    model = fresh("resnet8", 32, device)
    signed.apply_(model)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=1e-2, fused=device.type == "cuda", **options)
    signed.keep(optimizer)
    for _ in range(3):
        images = torch.randn(8, 3, 32, 32, device=device)
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = dict(model.named_parameters())
        for name, kept in signed.mask.tensors.items():
            assert not bool(weights[name].detach().cpu()[~kept].any()) and bool(weights[name].any())


def test_masks_on_each_device_fit_networks_on_each(device, tmp_path):
    """Apply, keep, compare, save and convert masks on one device with a network on the other."""
    # Phase: the same signed mask on both devices.
    params, mask, _ = params_of("resnet8", CPU)
    here = SignedMask.of(params, prune(params, mask, 0.5))
    there = here.to(device)
    assert here == there and there.mask == here.mask and there.agreement(here) == 1.0 == here.agreement(there)
    if device.type != "cpu":
        assert all(f"on {device.type}" in repr(one) for one in (there, there.mask)) and "on " not in repr(here.mask)
    assert there.mask.issubset(here.mask) and there.digest == here.digest
    for name, signed in (("here", here), ("there", there)):
        signed.save(tmp_path / name)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()

    # Phase: networks on both devices.
    found = []
    for where in (device, CPU):
        for signed in (here, there):
            model = fresh("resnet8", 32, where)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
            with signed.apply_(model).keep(optimizer, model):
                for param in model.parameters():
                    param.grad = torch.ones_like(param)
                optimizer.step()
            state = signed.to_torch_prune(model)
            assert all(tensor.device.type == where.type for tensor in state.values())
            sparse = {name: matrix.to_dense() for name, matrix in signed.to_csr(model).items()}
            found.append({name: tensor.cpu() for name, tensor in (state | sparse).items()})
    assert all(torch.equal(value, one[name]) for one in found[1:] for name, value in found[0].items())


def test_a_barrier_curve_of_two_checkpoints_matches_the_cpu(device, monkeypatch, tmp_path):
    """Compare the errors at eleven α, up to two images."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(3)
    images, labels = torch.randn(4, 128, 3, 16, 16), torch.randint(10, (4, 128))
    states = []
    for seed in range(2):
        model = fresh("resnet8", 16, CPU)
        torch.manual_seed(seed)
        for param in model.parameters():  # make two different networks
            param.data *= 1 + torch.randn(param.shape)
        Checkpoint.of(model, level=0, epochs=1, level_digest="0" * 64).save(tmp_path / "checkpoint")
        states.append(Checkpoint.load(tmp_path / "checkpoint").state_dict)
    curves = []
    for where in (device, CPU):
        batches = [(part.to(where), label.to(where)) for part, label in zip(images, labels, strict=True)]
        bn = [part for part, _ in batches]
        curves.append(barrier_curve(fresh("resnet8", 16, where), *states, bn_batches=bn, test_batches=batches))
    assert len(set(curves[1].error_percent)) > 2
    # an image with two almost equal logits may fall on either side
    for there, here in zip(curves[0].error_percent, curves[1].error_percent, strict=True):
        assert abs(there - here) <= 100 * 2 / labels.numel()
