"""Test pretrained networks: files are read without executing code, and tensors are matched by name."""

import argparse
import hashlib
import io
import itertools
import json
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50 as torchvision_resnet50

from harness.checkpoint import Checkpoint, Pretrained, read_network
from harness.common.digest import sha256_tensors
from harness.common.tensors import plain_name
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
    fitted, fresh, *_ = found.fitted(checkpoint(seed=1), "fc")
    assert fresh == [] and fitted.digest == checkpoint().digest


@pytest.mark.parametrize("first", [b" <", b"<", b"\x1f\x8b"], ids=["space and <", "<", "gzip"])
def test_the_length_of_a_header_is_no_other_kind_of_file(tmp_path, first):
    save_file(checkpoint().state_dict, path := tmp_path / "net.safetensors")
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    length = int.from_bytes(first.ljust(2, b"\x40"), "little")
    header = content[8:end].ljust(length)  # a header may end in spaces
    path.write_bytes(length.to_bytes(8, "little") + header + content[end:])
    assert read_network(path).digest == checkpoint().digest


def test_a_torchvision_state_dict_is_accepted():
    reference = torchvision_resnet50(num_classes=7)
    ours = build_model("resnet50", num_classes=5, channels=3, image_size=224)
    fresh = Checkpoint.of(ours, level=0, epochs=0, level_digest="")
    fitted, kept, notes, _ = Pretrained(reference.state_dict()).fitted(fresh, "fc")
    assert kept == ["fc.weight", "fc.bias"], "with another number of classes the classifier keeps its initialisation"
    assert torch.equal(fitted.params["layer4.2.conv3.weight"], reference.layer4[2].conv3.weight)
    assert torch.equal(fitted.params["fc.weight"], fresh.params["fc.weight"])


def test_a_file_without_batch_counters_is_accepted():
    tensors = {name: t for name, t in checkpoint().state_dict.items() if not name.endswith("num_batches_tracked")}
    fitted, kept, *_ = Pretrained(tensors).fitted(checkpoint(seed=1), "fc")
    assert all(name.endswith("num_batches_tracked") for name in kept) and kept
    assert torch.equal(fitted.params["conv1.weight"], tensors["conv1.weight"])


def pruned_by_torch(tensors, name="conv1.weight"):
    weight = tensors.pop(name)
    tensors |= {f"{name}_orig": weight, f"{name}_mask": torch.ones_like(weight)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv1.weight"), "the file has no conv1.weight$"),
        (lambda t: t.update({"conv9.weight": torch.zeros(1)}), "the network has no conv9.weight$"),
        (
            lambda t: t.update({"conv1.weight": torch.zeros(2, 1, 7, 7)}),
            r"conv1.weight is \(2, 1, 3, 3\) in the network and \(2, 1, 7, 7\) in the file$",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("layer")],
            r"the file has no layer1.0.conv1.weight, layer1.0.bn1.weight, .*, … \(30 of 38\)$",
        ),
        (
            lambda t: [t.update({f"net.model.{name}": t.pop(name)}) for name in list(t)] and t.pop("net.model.bn1.bias"),
            r"\(without 'net.model.'\) does not fit the network: the file \(without 'net.model.'\) has no bn1.bias$",
        ),
        (
            lambda t: [t.pop(name) for name in list(t)] and t.update(torch.nn.Linear(3, 4).state_dict()),
            r"the network has no weight, bias \(2 of 2\); the file has no conv1.weight, .* \(35 of 35\)$",
        ),
        (
            lambda t: [pruned_by_torch(t, "fc.weight"), t["fc.weight_mask"].mul_(0.5)],
            r"fc.weight_mask \(10, 8\) is no mask of zeros and ones for fc.weight_orig",
        ),
        (
            lambda t: [pruned_by_torch(t), t.pop("conv1.weight_mask")],
            "has no conv1.weight; it has conv1.weight_orig: a reparametrised weight",
        ),
        (lambda t: t.update({"fc.scale": torch.ones(1)}), "the network has no fc.scale$"),
        (
            lambda t: t.update({"conv1.weight_g": torch.zeros(2), "conv1.weight_v": t.pop("conv1.weight")}),
            "it has conv1.weight_g and conv1.weight_v: a reparametrised weight",
        ),
        (
            lambda t: t.update({"conv1.parametrizations.weight.original": t.pop("conv1.weight")}),
            "it has conv1.parametrizations.weight.original: a reparametrised weight",
        ),
        (
            lambda t: t.update({"conv1.weight": t["conv1.weight"].to(torch.int8)}),
            "conv1.weight is int8; floating-point",
        ),
        (lambda t: t.update({"conv1.weight": t["conv1.weight"] + 1j}), "conv1.weight is complex64; floating-point"),
        (lambda t: t["bn1.running_var"].fill_(torch.nan), "NaN or infinite values in bn1.running_var"),
        (lambda t: t.update({"conv1.weight": t["conv1.weight"].double() * 1e200}), "infinite values in conv1.weight"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(change, message):
    tensors = {name: tensor.clone() for name, tensor in checkpoint().state_dict.items()}
    change(tensors)
    with pytest.raises(ValueError, match=message) as caught:
        Pretrained(tensors).fitted(checkpoint(), "fc")
    assert str(caught.value).startswith("the file") and "\n" not in str(caught.value)


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


WRAPPERS = ["module.", "_orig_mod.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("prefixes", [p for n in (1, 2, 3) for p in itertools.product(WRAPPERS, repeat=n)], ids="".join)
def test_wrappers_are_removed_in_any_order(prefixes):
    assert plain_name("".join(prefixes) + "layer1.0.conv1.weight") == "layer1.0.conv1.weight"
    assert plain_name("layer1._orig_mod.0.conv1.weight") == "layer1.0.conv1.weight"
    assert plain_name("features.module.0.module.weight") == "features.0.weight"  # as torch's example wraps a VGG
    assert plain_name("module") == "module"  # a parameter of this name


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_give_the_network_of_their_values(tmp_path, form, dtype):
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in checkpoint().state_dict.items()}
    path = tmp_path / f"net.{form}"
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    found = read_network(path)
    values = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    same = [net.fitted(checkpoint(seed=1), "fc")[0].digest for net in (found, Pretrained(values))]
    assert same[0] == same[1] and found.digest != Pretrained(values).digest


def test_digests_of_usual_dtypes_are_unchanged():
    tensors = {
        str(dtype): torch.arange(6).to(dtype).reshape(2, 3).T for dtype in (torch.float32, torch.int64, torch.bool)
    }
    tensors |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.5, dtype=torch.float16)}
    complexes = torch.tensor([1 + 2j])
    assert sha256_tensors({"a": complexes.conj()}) == sha256_tensors({"a": torch.tensor([1 - 2j])})
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor.numpy().tobytes())
    assert sha256_tensors(tensors) == digest.hexdigest()


T = {"w": torch.arange(3.0)}


def archive(content: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, text in content.items():
            file.writestr(name, text)
    return data.getvalue()


def scripted() -> bytes:
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), data)
    return data.getvalue()


TAKEN = {
    "kuangliu's": {"net": {"module.w": T["w"]}, "acc": 93.1, "epoch": 199},
    "beside an optimizer": {"weights": T, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "nested twice": {"state_dict": {"model": T}},
    "nested under other keys": {"all": {"network": T, "optimizer": {"state": {0: {"momentum": T["w"]}}}}, "i": 1},
    "beside settings under a usual name": {"model": {"name": "resnet8"}, "net": T},
    "the usual name first": {"state_dict": T, "ema": T},
    "parameters": {"w": torch.nn.Parameter(T["w"])},
}
REFUSED = {
    "two candidates": ({"net": T, "ema": T, "acc": 1}, "holds 2 state dicts, under 'net', 'ema': choose one by its key, such as .*:net$"),
    "no candidate": ({"acc": 93.1, "epoch": 199}, "the keys acc, epoch with values of type float, int"),
    "many keys": ({f"k{n}": n for n in range(9)}, "the keys k0, k1, k2, k3, k4 and 4 more"),
    "tensors and numbers": (T | {"epoch": 3}, "the keys w, epoch with values of type int"),
    "nothing": ({}, "an empty mapping"),
    "names that are numbers": ({0: T["w"]}, "expected named tensors"),
    "a tensor": (T["w"], "got Tensor"),
    "the same name twice": ({"module.w": T["w"], "w": T["w"]}, "has w twice"),
    "sparse": ({"w": T["w"].to_sparse()}, "w is sparse_coo on cpu; save dense tensors"),
    "without values": ({"w": torch.zeros(3, device="meta")}, "w is strided on meta"),
    "terabytes": ({"w": torch.zeros(1).expand(10**12)}, "w claims 4,000,000,000,000 bytes"),
    "a namespace": ({"model": T, "args": argparse.Namespace(lr=1)}, r"holds more than tensors \(argparse.Namespace\)"),
    "a module": (torch.nn.Linear(1, 1), "holds more than tensors .torch.nn.modules.linear.Linear"),
    "scripted": (scripted, "is a TorchScript archive"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "web page with a byte order mark": (b"\xef\xbb\xbf<html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08", "is compressed with gzip"),
    "Keras": (b"\x89HDF\r\n", "is an HDF5 file"),
    "empty": (b"", "is empty"),
    "text": (b"abc", "cannot be read as a torch file"),
    "zeros": (b"\x00" * 40, "cannot be read as a torch file|is not a complete"),
    "other zip": (archive({"a.txt": "hi"}), "is a zip archive of a.txt, not a torch file"),
    "half a zip": (archive({"a.txt": "hi"})[:20], "is not a complete torch file"),
    "JSON": (b'{"error": "not found"}', "cannot be read|is not a complete"),
    "safetensors header of 2^60 bytes": ((2**60).to_bytes(8, "little") + b"{}", "is not a complete safetensors file"),
}


def written(path: Path, content: object) -> Path:
    content = content() if callable(content) and not isinstance(content, torch.nn.Module) else content
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
def test_a_nested_state_dict_is_taken(tmp_path, content):
    found = read_network(written(tmp_path / "net.pth", content)).tensors
    assert torch.equal(found.pop("w"), T["w"]) and not found


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_files_that_are_no_network_are_named(tmp_path, suffix, content, words):
    words = words if suffix == "pth" or not words.startswith("cannot") else "is not a complete safetensors file"
    with pytest.raises(ValueError, match=rf"net\.{suffix}.* ({words})") as caught:
        read_network(written(tmp_path / f"net.{suffix}", content))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_give_one_line(tmp_path, form):
    """Flip a bit or cut the file, 60 times. Only forms with checksums cannot load other values silently."""
    path, random = tmp_path / "net.bin", Random(form)
    if form == "safetensors":
        save_file(T, path)
    else:
        torch.save(T, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        if random.random() < 0.2:
            del damaged[random.randrange(len(content)) :]
        else:
            damaged[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_network(path)
        except ValueError as error:
            assert "net.bin" in str(error) and "\n" not in str(error)
        else:
            assert form != "zip" or torch.equal(found.tensors["w"], T["w"])


def test_a_file_in_the_directory_of_a_run_is_checked(tmp_path):
    save_file(T, path := tmp_path / "checkpoint.safetensors")
    (tmp_path / "record.json").write_text(json.dumps({"files": {path.name: "0" * 64}}))
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors was altered"):
        read_network(path)
    for missing in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(OSError, match=f"{missing}"):
            read_network(missing)
