"""Test pretrained networks: files are read without executing code, and tensors are matched by name."""

import argparse
import hashlib
import io
import itertools
import json
import re
import warnings
import zipfile
from pathlib import Path
from random import Random

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torchvision.models import get_model
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
            lambda t: (
                [t.update({f"net.model.{name}": t.pop(name)}) for name in list(t)] and t.pop("net.model.bn1.bias")
            ),
            r"\(without 'net.model.'\) does not fit the network: the file \(without 'net.model.'\) has no bn1.bias$",
        ),
        (
            lambda t: [t.pop(name) for name in list(t)] and t.update(torch.nn.Linear(3, 4).state_dict()),
            r"the network has no weight, bias \(2 of 2\); the file has no conv1.weight, .* \(37 of 37\)$",
        ),
        (
            lambda t: [t.update({f"head.{name}": t.pop(f"fc.{name}")}) for name in ("weight", "bias")],
            r"the network has no head.weight, head.bias \(2 of 44\); the file has no fc.weight, fc.bias \(2 of 44\)$",
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


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def doubled(tensors):
    return {name: tensor * 2 for name, tensor in tensors.items()}


class Lightning(nn.Module):
    """As a LightningModule with a network, a weighted loss, and a metric with persistent states."""

    def __init__(self, net):
        super().__init__()
        self.model, self.criterion = net, nn.CrossEntropyLoss(weight=torch.ones(10))
        self.acc = nn.Module()
        self.acc.register_buffer("tp", torch.tensor(3))


def lightning(net):
    extra = {"epoch": 0, "pytorch-lightning_version": "2.6.6", "loops": {"fit_loop": {"state_dict": {}}}}
    best = {"ModelCheckpoint": {"best_k_models": {"a.ckpt": torch.tensor(0.5)}}}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    return extra | {"state_dict": Lightning(net).state_dict(), "callbacks": best, "optimizer_states": [optimizer]}


def deepspeed(net):
    shapes = [{name: parameter.shape for name, parameter in net.named_parameters()}]
    return {"module": net.state_dict(), "buffer_names": ["bn1.running_mean"], "optimizer": None, "param_shapes": shapes}


def timm_saver(net):
    ema = doubled(ModelEmaV3(net).state_dict())
    return {"epoch": 1, "arch": "resnet8", "state_dict": net.state_dict(), "version": 2, "state_dict_ema": ema}


FORMS = {
    # name: (content, whether safetensors can hold it, words of a note)
    "plain": (lambda net: net.state_dict(), True, None),
    "Lightning": (lightning, False, r"not taken: criterion.weight, acc.tp \(2 of 46\)$"),
    "Lightning, flat": (lambda net: Lightning(net).state_dict(), True, r"without 'model\.'"),
    "Lightning, net": (lambda net: {"state_dict": under("net.", net.state_dict())}, False, r"without 'net\.'"),
    "DDP": (lambda net: nn.DataParallel(net).state_dict(), True, None),
    "compiled DDP": (lambda net: under("_orig_mod.module.", net.state_dict()), True, None),
    "DDP of a compiled one": (lambda net: under("module._orig_mod.", net.state_dict()), True, None),
    "Lightning, compiled DDP": (lambda net: under("model._orig_mod.module.", net.state_dict()), True, "without 'model"),
    "DeepSpeed": (deepspeed, False, "the network is taken from 'module'"),
    "DeepSpeed in Lightning": (lambda net: under("_forward_module.model.", net.state_dict()), True, "_forward_module"),
    "kuangliu": (lambda net: {"net": under("module.", net.state_dict()), "acc": 93.1, "epoch": 199}, False, "'net'"),
    "timm's saver": (timm_saver, False, "has 2 networks: 'state_dict' is taken; .*:state_dict_ema$"),
    "timm ModelEmaV2": (lambda net: ModelEmaV2(net).state_dict(), True, None),
    "timm ModelEmaV3": (lambda net: ModelEmaV3(net).state_dict(), True, None),
    "averaged": (lambda net: AveragedModel(net).state_dict(), True, r"not taken: n_averaged \(1 of 45\)"),
    "with a random generator": (
        lambda net: {"net": net.state_dict(), "rng": {"cpu": torch.get_rng_state()}},
        False,
        "",
    ),
    "one network, two names": (
        lambda net: under("model.", net.state_dict()) | under("loss.net.", net.state_dict()),
        False,
        r"'loss.net.'|'model.'",
    ),
    "a larger network beside it": (
        lambda net: under("student.", net.state_dict()) | under("teacher.", net.state_dict() | {"more": torch.ones(1)}),
        False,
        r"without 'student\.'",
    ),
    "another width beside it": (
        lambda net: (
            under("a.", build_model("resnet8", num_classes=10, **SIZES | {"width": 4}).state_dict())
            | under("b.", net.state_dict())
        ),
        True,
        r"without 'b\.'",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_other_code_give_the_network(tmp_path, caplog, form):
    """Names in a form must lead to the same values, and each change must be told."""
    caplog.set_level("INFO")
    make, flat, note = FORMS[form]
    torch.manual_seed(0)
    net = build_model("resnet8", num_classes=10, **SIZES)
    content, paths = make(net), [tmp_path / "net.pth"]
    torch.save(content, paths[0])
    if flat:
        save_file(content, tmp_path / "net.safetensors")
        paths.append(tmp_path / "net.safetensors")
    for path in paths:
        caplog.clear()
        fitted = read_network(path).fitted(checkpoint(seed=1), "fc")
        assert fitted.checkpoint.digest == checkpoint().digest and fitted.fresh == []
        told = caplog.messages + fitted.notes
        assert any(re.search(note, one) for one in told) if note else note == "" or not told


AMBIGUOUS = {
    "two of equal shapes": (
        lambda t: under("student.", t) | under("teacher.", doubled(t)),
        "the file has the network 2 times, under 'student', 'teacher'; choose one by its name: FILE:student",
        {"student": 1, "teacher": 2},
    ),
    "one without a name": (lambda t: t | under("ema.", doubled(t)), "under no leading name, 'ema'", {"ema": 2}),
    "two keys": (
        lambda t: {"net": t, "ema": doubled(t)},
        r"holds 2 state dicts, under 'net', 'ema': choose one by its key, such as .*net.pth:net$",
        {"net": 1, "ema": 2},
    ),
    "DDP and plain": (lambda t: under("module.", t) | doubled(t), r"twice, .*: .*net.pth:module$", {"module": 1}),
    "a usual key and another": (lambda t: {"model": t, "model_ema": doubled(t)}, None, {"": 1, "model_ema": 2}),
    "a key and a part of names": (
        lambda t: {"state_dict": under("module.q.", t) | under("module.k.", doubled(t))},
        "under 'q', 'k'",
        {"state_dict.module.q": 1, "state_dict.module.k": 2, "q": 1, "k": 2},
    ),
}


@pytest.mark.parametrize(("content", "words", "choices"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_two_networks_in_a_file_are_chosen_by_key(tmp_path, content, words, choices):
    torch.save(content(checkpoint().state_dict), path := tmp_path / "net.pth")
    if words:
        with pytest.raises(ValueError, match=words):
            read_network(path).fitted(checkpoint(), "fc")
    for key, factor in choices.items():
        fitted = read_network(f"{path}:{key}" if key else path).fitted(checkpoint(seed=1), "fc")
        assert torch.equal(fitted.checkpoint.params["fc.weight"], factor * checkpoint().params["fc.weight"])
    with pytest.raises(
        ValueError, match=r"net\.pth has no tensors under 'other'; it has .*(keys|names that begin with) \w+, "
    ):
        read_network(f"{path}:other")


def test_a_network_in_several_files_is_read(tmp_path, caplog):
    """Read what Accelerate writes, from the directory, the index, and one file."""
    caplog.set_level("INFO")
    torch.manual_seed(0)
    net = build_model("resnet8", num_classes=10, **SIZES)
    for safe, index in ((True, "model.safetensors.index.json"), (False, "pytorch_model.bin.index.json")):
        Accelerator(cpu=True).save_model(net, tmp_path, max_shard_size="4KB", safe_serialization=safe)
        assert read_network(tmp_path / index).digest == checkpoint().digest
    files = sorted(path for path in tmp_path.glob("model-*.safetensors"))
    assert read_network(tmp_path).digest == checkpoint().digest and len(files) == 2
    assert "model.safetensors.index.json is read" in caplog.text
    with pytest.raises(ValueError, match="is one of 2 files of a network; give the directory, or the index"):
        read_network(files[0])

    # Phase: what can be wrong with an index.
    index = tmp_path / "model.safetensors.index.json"
    right = json.loads(index.read_text())
    first, *names = right["weight_map"]
    for places, words in (
        ({name: right["weight_map"][name] for name in names}, rf"disagree about {first} \(1 of"),
        (right["weight_map"] | {"other": files[0].name}, "disagree about other"),
        (right["weight_map"] | {first: "../a.safetensors"}, "lists files outside its directory"),
        (right["weight_map"] | {first: "model-3.safetensors"}, "lists 3 files; missing are model-3.safetensors"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            read_network(index)
    index.write_text("{")
    with pytest.raises(ValueError, match="is not a complete index"):
        read_network(index)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model.safetensors", "model_1.safetensors"], "has 2 networks, model.safetensors, model_1.safetensors; name"),
        (["model.safetensors", "model.safetensors.index.json"], "has 2 networks"),
        ([".metadata"], "distributed checkpoint; convert it: python -m torch.distributed.checkpoint.format_utils"),
        (["zero_to_fp32.py"], r"DeepSpeed checkpoint; convert it: python .*zero_to_fp32.py"),
        (["checkpoint.safetensors"], "has none of model.safetensors.index.json, .*; name a file"),
    ],
)
def test_directories_without_one_network_are_refused(tmp_path, files, words):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_network(tmp_path)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_masks_of_torch_prune_are_applied(prefix):
    """Compare with what prune.remove leaves, for weights and biases."""
    torch.manual_seed(0)
    net = build_model("resnet8", num_classes=10, **SIZES)
    convs = [(one, "weight") for one in net.modules() if isinstance(one, nn.Conv2d)]
    prune.global_unstructured(convs, prune.L1Unstructured, amount=0.5)
    prune.l1_unstructured(net.fc, "bias", 0.3)
    tensors = {name: tensor.detach().clone() for name, tensor in under(prefix, net.state_dict()).items()}
    for module, name in [*convs, (net.fc, "bias")]:
        prune.remove(module, name)
    fitted = Pretrained(tensors).fitted(checkpoint(seed=1), "fc")
    assert fitted.checkpoint.digest == Checkpoint.of(net, level=0, epochs=0, level_digest="").digest
    assert fitted.pruned and re.search(r"conv1.weight, .* had a mask of .*: 592 of 1,180 values stay", fitted.notes[0])


class Wrapping(nn.Module):
    """A network inside another module, with a shared weight and a buffer that no state dict has."""

    def __init__(self, net):
        super().__init__()
        self.inner = net
        self.again = nn.Linear(*reversed(net.fc.weight.shape), bias=False)
        self.again.weight = net.fc.weight
        self.register_buffer("grid", torch.arange(3.0), persistent=False)


def test_shared_and_computed_tensors_may_be_absent():
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(Wrapping(build_model("resnet8", num_classes=10, **SIZES)))
    trained, fresh = (Checkpoint.of(net, level=0, epochs=0, level_digest="") for net in nets)
    whole = nets[0].state_dict()
    alone = {name: tensor for name, tensor in whole.items() if name != "inner.fc.weight"}  # as safetensors saves it
    inside = nets[0].inner.state_dict()
    for tensors in (whole, alone, inside, under("model.", whole)):
        fitted = Pretrained(tensors).fitted(fresh, "inner.fc", ["grid"])
        assert fitted.checkpoint.digest == trained.digest and fitted.fresh == []
    assert "again.weight" not in fitted.checkpoint.params
    with pytest.raises(ValueError, match="again.weight and inner.fc.weight share one tensor"):
        Pretrained(whole | {"again.weight": torch.ones(10, 8)}).fitted(fresh, "inner.fc", ["grid"])


def test_why_a_classifier_is_drawn_anew_is_told():
    own, other = checkpoint(7), checkpoint().state_dict
    fitted = Pretrained(other).fitted(own, "fc")
    words = "(fc.weight, fc.bias) is drawn anew: fc.weight is (7, 8) in the network, it is (10, 8) in the file"
    assert fitted.notes == [f"the classifier {words}"]
    lacking = {name: tensor for name, tensor in other.items() if not name.startswith("fc.")}
    notes = Pretrained(under("backbone.", lacking) | {"head.weight": torch.ones(3)}).fitted(own, "fc").notes
    assert notes[0] == "its names are taken without 'backbone.'" and "not taken: head.weight (1 of" in notes[1]
    assert notes[2].endswith("fc.weight is (7, 8) in the network, the file has none")


def test_values_that_deepspeed_left_elsewhere_are_named():
    tensors = {name: tensor[:0] if tensor.ndim else tensor for name, tensor in checkpoint().state_dict.items()}
    with pytest.raises(ValueError, match=r"has no values of conv1.weight, .* \(37 of 44\): DeepSpeed ZeRO-3"):
        Pretrained(tensors).fitted(checkpoint(), "fc")


@pytest.mark.parametrize(
    ("name", "make"),
    [("resnet50", lambda: timm.create_model("resnet50")), ("mobilenet_v2", lambda: get_model("mobilenet_v2"))],
)
def test_networks_of_timm_and_torchvision_have_the_same_names(name, make):
    with torch.device("meta"):
        ours, theirs = build_model(name, num_classes=1000, channels=3, image_size=224), make()
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_the_conversion_of_a_pickle_is_one_command(tmp_path):
    """Run the code that the error gives for a checkpoint with the settings of its training, as timm saves it."""
    torch.save({"state_dict": T, "args": argparse.Namespace(lr=1)}, path := tmp_path / "last.pth.tar")
    with pytest.raises(ValueError, match=r"holds more than tensors \(argparse.Namespace\)") as caught:
        read_network(path)
    exec(re.search(r'python -c "(.*)"', str(caught.value))[1])
    assert torch.equal(read_network(tmp_path / "last.pth.safetensors").tensors["w"], T["w"])


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"conv1.weight": Harmful()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_network(tmp_path / "net.pth")
    assert capsys.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict: expected named tensors, got list"):
        read_network(tmp_path / "list.pth")


DTYPES = [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
WRAPPERS = ["module.", "_orig_mod.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("prefixes", [p for n in (1, 2, 3) for p in itertools.product(WRAPPERS, repeat=n)], ids="".join)
def test_wrappers_are_removed_in_any_order(prefixes):
    assert plain_name("".join(prefixes) + "layer1.0.conv1.weight") == "layer1.0.conv1.weight"
    assert plain_name("layer1._orig_mod.0.conv1.weight") == "layer1.0.conv1.weight"
    assert plain_name("features.module.0.module.weight") == "features.0.weight"  # as torch's example wraps a VGG
    assert plain_name("module") == "module"  # a parameter of this name


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
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
    "two candidates": (
        {"net": T, "ema": T, "acc": 1},
        "holds 2 state dicts, under 'net', 'ema': choose one by its key, such as .*:net$",
    ),
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


@pytest.mark.parametrize("odd", ["twice", "directory"])
def test_entries_that_torch_reads_otherwise_are_refused(tmp_path, odd):
    """torch takes another of two equal names than `zipfile`, and reads no bytes of a directory."""
    path = tmp_path / "net.pth"
    torch.save(T, path)
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    (name,) = (name for name in members if name.endswith("data/0"))
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member, content in members.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = 0x10 if odd == "directory" and member == name else 0
            archive.writestr(entry, content)
            if odd == "twice" and member == name:
                archive.writestr(zipfile.ZipInfo(member), bytes(len(content)))
    with pytest.raises(ValueError, match=f"{path} is damaged: it has .*{name}.* twice or as a directory"):
        read_network(path)


def test_a_file_in_the_directory_of_a_run_is_checked(tmp_path):
    save_file(T, path := tmp_path / "checkpoint.safetensors")
    (tmp_path / "record.json").write_text(json.dumps({"files": {path.name: "0" * 64}}))
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors was altered"):
        read_network(path)
    for missing in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(OSError, match=f"{missing}"):
            read_network(missing)
