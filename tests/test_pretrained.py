"""Test pretrained networks: files are read without executing code, and tensors are matched by name."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50 as torchvision_resnet50

from harness.checkpoint import Checkpoint, Pretrained, read_network
from harness.models import build_model

SIZES = {"channels": 1, "image_size": 8, "width": 2}


def checkpoint(num_classes=10, seed=0):
    torch.manual_seed(seed)
    return Checkpoint.of(build_model("resnet8", num_classes=num_classes, **SIZES), level=0, epochs=0, level_digest="")


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "wrapped"])
def test_files_give_the_same_network(tmp_path, form):
    tensors = checkpoint().state_dict
    if form == "safetensors":
        save_file(tensors, path := tmp_path / "net.safetensors")
    else:
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
        content = {"pth": tensors, "nested": {"state_dict": tensors, "epoch": 3}, "wrapped": wrapped}[form]
        torch.save(content, path := tmp_path / "net.pth")
    found = read_network(path)
    assert found.digest == Pretrained(tensors).digest
    fitted, fresh = found.fitted(checkpoint(seed=1), "fc")
    assert fresh == [] and fitted.digest == checkpoint().digest


def test_a_torchvision_state_dict_is_accepted():
    reference = torchvision_resnet50(num_classes=7)
    ours = build_model("resnet50", num_classes=5, channels=3, image_size=224)
    fresh = Checkpoint.of(ours, level=0, epochs=0, level_digest="")
    fitted, kept = Pretrained(reference.state_dict()).fitted(fresh, "fc")
    assert kept == ["fc.weight", "fc.bias"], "with another number of classes the classifier keeps its initialisation"
    assert torch.equal(fitted.params["layer4.2.conv3.weight"], reference.layer4[2].conv3.weight)
    assert torch.equal(fitted.params["fc.weight"], fresh.params["fc.weight"])


def test_a_file_without_batch_counters_is_accepted():
    tensors = {name: t for name, t in checkpoint().state_dict.items() if not name.endswith("num_batches_tracked")}
    fitted, kept = Pretrained(tensors).fitted(checkpoint(seed=1), "fc")
    assert all(name.endswith("num_batches_tracked") for name in kept) and kept
    assert torch.equal(fitted.params["conv1.weight"], tensors["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv1.weight"), "conv1.weight: not in the file"),
        (lambda t: t.update({"conv9.weight": torch.zeros(1)}), "conv9.weight: not in the network"),
        (lambda t: t.update({"conv1.weight": torch.zeros(2, 3, 3, 3)}), r"conv1.weight: .*\(2, 3, 3, 3\)"),
    ],
)
def test_every_mismatched_tensor_is_named(change, message):
    tensors = dict(checkpoint().state_dict)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        Pretrained(tensors).fitted(checkpoint(), "fc")


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"conv1.weight": Harmful()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_network(tmp_path / "net.pth")
    assert capsys.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict: expected named tensors, got list"):
        read_network(tmp_path / "list.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 40)
        with pytest.raises(ValueError, match=name):
            read_network(tmp_path / name)
