"""Test networks that are not built in: their partition, their classifier, their options, and errors about them."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from harness.checkpoint import Checkpoint, Pretrained
from harness.config import ModelConfig
from harness.models import MODELS, ParamPartition, width_of
from harness.models.network import Definition, Network, from_record, rows_of
from harness.models.partition import norm_parameters
from harness.models.sources import NotBuildableError
from harness.models.survey import Survey, changed_by_sync_batchnorm
from tests.models.user_networks import HUGGING_FACE, SMALL, write

IMAGE = 64
NETWORKS = {
    # name: (classifier, types of layers that hold ψ)
    "timm:resnet18": (("fc",), {"BatchNorm2d"}),
    "timm:test_convnext": (("head.fc",), {"LayerNorm", "LayerNorm2d"}),
    "timm:vit_tiny_patch16_224": (("head",), {"LayerNorm"}),
    "timm:efficientnet_lite0": (("classifier",), {"BatchNormAct2d"}),
    "timm:mobilenetv3_small_100": (("classifier",), {"BatchNormAct2d"}),
    "timm:test_efficientnet_gn": (("classifier",), {"GroupNormAct"}),
    "timm:deit3_small_patch16_224": (("head",), {"LayerNorm"}),
    "timm:deit_tiny_distilled_patch16_224": (("head", "head_dist"), {"LayerNorm"}),
    "torchvision:regnet_y_400mf": (("fc",), {"BatchNorm2d"}),
    "torchvision:convnext_tiny": (("classifier.2",), {"LayerNorm", "LayerNorm2d"}),
    "torchvision:swin_t": (("head",), {"LayerNorm"}),
}
"""The networks of the table, with the parts that another rule than the project's gives."""
PRUNABLE = {"Conv2d", "Conv2dSame", "Linear", "NonDynamicallyQuantizableLinear"}


def resolved(name: str, *args: str, classifier: str | None = None, channels: int = 3, size: int = IMAGE) -> Network:
    config = ModelConfig(name, args=args, classifier=classifier)
    source = Path(name.rpartition(":")[0]).read_bytes() if config.kind == "file" else None
    return Definition.of(config, source).sized(7, channels, size)


def counts(model: nn.Module, classifier: tuple[str, ...], norms: set[str]) -> dict[str, int]:
    """Count the parameters of each role from the modules, by the names of their types alone."""
    found = {"prunable": 0, "norm": 0, "other": 0}
    for name, module in model.named_modules():
        kind = type(module).__name__
        for short, parameter in module.named_parameters(recurse=False):
            inside = any(name == one or name.startswith(f"{one}.") for one in classifier)
            is_weight = kind in PRUNABLE and short == "weight" and not inside
            role = "norm" if kind in norms else "prunable" if is_weight else "other"
            found[role] += parameter.numel()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_partition_has_the_counts_of_the_modules(name: str) -> None:
    classifier, norms = NETWORKS[name]
    network = resolved(name)
    assert network.classifier == classifier
    torch.manual_seed(0)
    model = network.build()
    expected = counts(model, classifier, norms)
    found = dict.fromkeys(expected, 0)
    for row in network.survey.rows:
        found[row.role] += row.num_parameters
    assert found == expected and min(expected.values()) > 0
    assert sum(found.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert not [remark for remark in network.survey.remarks if remark.loud]
    assert ("img_size" in network.options) == any(word in name for word in ("vit", "deit")), "only where it is fixed"


def test_a_hugging_face_network_in_a_users_file(tmp_path: Path) -> None:
    name = write(tmp_path / "hf.py", HUGGING_FACE)
    network = resolved(name, size=32)
    assert network.classifier == ("model.classifier",) and "last linear layer" in network.notes[0]
    model = network.build()
    expected = counts(model, ("model.classifier",), {"LayerNorm"})
    found = {row.role: 0 for row in network.survey.rows}
    for row in network.survey.rows:
        found[row.role] += row.num_parameters
    assert found == expected and network.survey.remarks == ()
    network.check()
    with pytest.raises(ValueError, match=r"returns ImageClassifierOutput; return the logits: wrap the network"):
        resolved(name.replace(":build", ":raw"), size=32).check()


# ---------------------------------------------------------------------- layers that need attention


class MyNorm(nn.Module):
    """A normalisation layer that derives from none of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Whitening(nn.Module):
    """A layer with running statistics, whose name does not say that it normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("running_mean", torch.zeros(4))


class OtherConv(nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * 2


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.zeros(3, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 4))


class Frozen(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight.requires_grad_(False)


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second)


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def parametrised() -> nn.Module:
    layer = nn.Embedding(4, 4)
    return parametrizations.orthogonal(layer)


LAYERS: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    # name: (layer, beginning of the remark, is it loud)
    "unknown norm": (MyNorm, "unknown normalisation layer MyNorm (part): AWS does NOT interpolate", True),
    "running statistics": (Whitening, "unknown normalisation layer Whitening (part): AWS does NOT interpolate", True),
    "subclass": (lambda: OtherConv(4, 4, 1), "OtherConv, a layer with a forward pass of its own (part): pruned", True),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 4, 2), "transposed convolution ConvTranspose2d", False),
    "3-d convolution": (lambda: nn.Conv3d(4, 4, 1), "3-d convolution Conv3d (part): stays dense", False),
    "LSTM": (lambda: nn.LSTM(4, 4), "recurrent layer LSTM (part): stays dense", False),
    "GRU cell": (lambda: nn.GRUCell(4, 4), "recurrent layer GRUCell (part): stays dense", False),
    "embedding": (lambda: nn.Embedding(4, 4), "embedding Embedding (part): stays dense", False),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), "bilinear layer Bilinear (part): stays dense", False),
    "unknown weights": (Experts, "parameter of an unknown layer Experts (part.mixture): stays dense", False),
    "tied": (tied, "tied parameter (part.0.weight = part.1.weight): one tensor", False),
    "shared": (shared, "shared module (part.0 = part.2): one module", False),
    "frozen": (Frozen, "frozen parameter (part.weight): it is not trained", False),
    "parametrised": (parametrised, "parametrised Embedding (part): stays dense", False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_are_not_understood_are_named(name: str) -> None:
    build, expected, loud = LAYERS[name]
    model = nn.ModuleDict({"part": build(), "head": nn.Linear(4, 7)})
    partition = ParamPartition.of(model, "head")
    (remark,) = Survey.of(model, partition, ["head"]).remarks
    assert str(remark).startswith(expected) and remark.loud == loud
    if "stays dense" in expected or name in ("unknown norm", "running statistics"):
        assert all(parameter in partition.other for parameter, _ in model.named_parameters())


def test_understood_layers_need_no_remark() -> None:
    understood = [nn.Conv1d(1, 1, 1), nn.MultiheadAttention(4, 2), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, affine=True)]
    understood += [timm.layers.LayerScale(4), timm.layers.Conv2dSame(4, 4, 3), timm.layers.BatchNormAct2d(4)]
    model = nn.ModuleDict({"parts": nn.ModuleList(understood), "head": nn.Linear(4, 7)})
    survey = Survey.of(model, ParamPartition.of(model, "head"), ["head"])
    assert survey.remarks == ()
    assert survey.table()[0].split() == ["role", "layer", "tensors", "parameters"]


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (timm.layers.RmsNorm(4), {"weight"}),
        (timm.layers.RmsNorm2d(4), {"weight"}),
        (timm.layers.RmsNormAct(4), {"weight"}),
        (timm.layers.SimpleNorm(4), {"weight"}),
        (timm.layers.EvoNorm2dB0(4), {"weight", "bias"}),
        (timm.layers.EvoNorm2dS0a(32), {"weight", "bias"}),
        (timm.layers.FilterResponseNormTlu2d(4), {"weight", "bias"}),
        (timm.layers.grn.GlobalResponseNorm(4), {"weight", "bias"}),
        (timm.layers.FrozenBatchNormAct2d(4), None),
        (nn.RMSNorm(4), {"weight"}),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_norms_of_timm_that_derive_from_none_of_torchs(layer: nn.Module, norm: set[str] | None) -> None:
    model = nn.ModuleDict({"part": layer, "head": nn.Linear(4, 7)})
    partition = ParamPartition.of(model, "head")
    assert partition.norm == {f"part.{name}" for name in norm or ()}
    assert not [remark for remark in Survey.of(model, partition, ["head"]).remarks if remark.loud]
    assert norm is None or set(norm_parameters(layer) or ()) == norm


def test_all_norms_of_timm_are_known() -> None:
    """A norm that a later timm adds must be decided."""
    kinds = [kind for kind in vars(timm.layers).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    norms = {kind for kind in kinds if "norm" in kind.__name__.lower() and "Mlp" not in kind.__name__}
    undecided = set()
    for kind in norms - {timm.layers.ConvNormAct, timm.layers.SeparableConvNormAct, timm.layers.SplitBatchNorm2d}:
        try:
            layer = kind(32)
        except Exception:
            continue
        known = norm_parameters(layer) is not None or not list(layer.parameters(recurse=False))
        undecided |= set() if known else {kind.__name__}
    assert undecided == set() and len(norms) > 20


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (timm.layers.StdConv2d(4, 4, 1), "standardises its weight in the forward pass"),
        (timm.layers.ScaledStdConv2dSame(4, 4, 1), "standardises its weight in the forward pass"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "uses a parametrisation"),
    ],
    ids=["standardised", "scaled", "weight norm"],
)
def test_reparametrised_weights_are_refused(layer: nn.Module, message: str) -> None:
    model = nn.ModuleDict({"part": layer, "head": nn.Linear(4, 7)})
    with pytest.raises(ValueError, match=message):
        ParamPartition.of(model, "head")
    assert parametrize.is_parametrized(layer) == ("parametrisation" in message)


def test_sync_batchnorm_would_lose_the_activation_of_timms_batchnorm() -> None:
    assert changed_by_sync_batchnorm(timm.create_model("efficientnet_lite0")) == ["BatchNormAct2d"]
    assert changed_by_sync_batchnorm(timm.create_model("resnet18")) == []


# ---------------------------------------------------------------------- names, options and errors


def changed(after: str, around: str = "") -> str:
    """Return a file whose function changes its network before it returns it."""
    return SMALL.replace(
        "return Net(num_classes, channels, width)", f"return {around}(Net(num_classes, channels, width){after})"
    )


OPEN_FILE = SMALL.replace("    def forward", "        self.log = open('/dev/null')\n\n    def forward")
ONLY_LINEAR = "from torch import nn\ndef build(num_classes, channels, image_size):\n"
ONLY_LINEAR += "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))\n"
NO_CLASSIFIER = SMALL.replace("Linear(width, num_classes)", "Linear(width, 8)").replace("(2, 3)))", "(2, 3)))[:, :7]")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("timm:resnet81", (), r"did you mean resnet18, .* \(timm.list_models\(\) lists"),
        ("torchvision:regnet_y_400", (), "did you mean regnet_y_400mf"),
        ("timm:resnet18", ("pretrained=true",), "nothing is downloaded; give trained weights as a file"),
        ("timm:resnet18", ("checkpoint_path=x.pth",), "nothing is downloaded"),
        ("torchvision:resnet18", ("weights=DEFAULT",), "nothing is downloaded"),
        ("timm:resnet18", ("in_chans=4",), "the data set gives it to timm:resnet18; leave it out"),
        ("timm:resnet18", ("depth=4",), r"timm cannot build resnet18 with depth=4: TypeError: .*depth"),
        ("torchvision:googlenet", (), "switch them off: --model.args aux_logits=false"),
        ("timm:test_vit", ("num_classes=0",), "the data set gives it"),
        ("timm:resnet18", ("global_pool=",), r"fails on images|maps 2 images to the shape"),
        ("resnet21", (), r"unknown network 'resnet21' \(did you mean .*further networks are timm:NAME"),
        ("timm:resnet18.nothing", (), "unknown network 'timm:resnet18.nothing'.*names with a tag: resnet18.a1_in1k"),
        ("torchvision:squeezenet1_1", (), r"--model.classifier MODULE; its last layers: .*classifier.1 \(Conv2d, 7\)"),
        ("resnet20", ("depth=4",), "--model.args and --model.classifier are for networks that are not built in"),
    ],
)
def test_errors_say_what_to_do(name: str, args: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(name, *args).check()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("import nowhere_to_be_found\n", "build", r"net.py, line 1: ModuleNotFoundError: .*; it can import"),
        ("def build(:\n", "build", "net.py, line 1: SyntaxError"),
        ("x = 1\n\n\ny = 1 / 0\n", "build", "net.py, line 4: ZeroDivisionError"),
        ("def build(**kw):\n    return 1 / 0\n", "build", r"net.py, line 2: ZeroDiv.*, called as build\(num_classes=7"),
        (
            "def build(**kw):\n    return 5\n",
            "build",
            "build of .*net.py returned a int; it must",
        ),
        ("def built(**kw):\n    return 5\n", "build", "net.py has no function 'build'; it has built"),
        (
            NO_CLASSIFIER,
            "build",
            r"no linear layer with 7 outputs, .* its last layers: head \(Linear, 8 outputs\), conv",
        ),
        (changed(".to('meta')"), "build", "conv.weight of net.py:build is on meta; build the network on the CPU"),
        (changed(".half()"), "build", "conv.weight of net.py:build is torch.float16; parameters must be float32"),
        (changed(".double()"), "build", "is torch.float64; parameters must be float32"),
        (changed(".requires_grad_(False)"), "build", "has no parameter that requires a gradient"),
        (changed("", "torch.compile"), "build", "returned a OptimizedModule; .*--compile"),
        (changed("", "nn.DataParallel"), "build", "returned a DataParallel; return the network inside it"),
        (OPEN_FILE, "build", r"cannot be copied \(copy.deepcopy: TypeError: .*keep open files, locks"),
        (ONLY_LINEAR, "build", "has no prunable weight: no convolution or linear layer besides its classifier 1;"),
        ("import sys\nsys.exit(2)\n", "build", "net.py, line 2: SystemExit: 2"),
        (SMALL.replace(".mean((2, 3))", ""), "build", "fails on images of 3×64×64: RuntimeError"),
        (SMALL + "\nlater = lambda **kw: nn.LazyLinear(7)\n", "later", "fails on|has no shape yet|lazy"),
    ],
)
def test_errors_in_a_users_file_have_its_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    write(tmp_path / "net.py", text)
    network = resolved(f"{tmp_path / 'net.py'}:{name}")
    with pytest.raises(ValueError, match=message):
        network.check()
        assert network.classifier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py"], "nothing is written beside the file"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:hf-hub:someone/net", "names of a hub are not allowed, because nothing is downloaded"),
        ("timm:someone/net", "names of a hub are not allowed"),
        ("hf-hub:someone/net", "expected a built-in name, timm:NAME, torchvision:NAME or FILE.py:FUNCTION"),
        ("net.py", "expected FILE.py:FUNCTION, such as net.py:build"),
        ("net.py:1", "expected FILE.py:FUNCTION"),
    ],
)
def test_names_of_another_form_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(name)


@pytest.mark.parametrize("classifier", ["", "fc,", "fc, head", "fc,fc", " fc"])
def test_classifiers_of_another_form_are_refused(classifier: str) -> None:
    with pytest.raises(ValueError, match="expected one module, or several with commas and without spaces"):
        ModelConfig("timm:resnet18", classifier=classifier)


def test_a_convolution_can_be_the_classifier() -> None:
    network = resolved("torchvision:squeezenet1_1", classifier="classifier.1")
    network.check()
    assert "classifier.1.weight" in network.partition.other and "features.0.weight" in network.partition.prunable


def test_values_of_options_are_json_or_text() -> None:
    words = ("a=64", "b=0.5", "c=false", "d=relu", "e=[1, 2]", 'f="64"', "g=null", "h=a=b")
    found = ModelConfig("timm:resnet18", args=words).options
    assert found == {"a": 64, "b": 0.5, "c": False, "d": "relu", "e": [1, 2], "f": "64", "g": None, "h": "a=b"}
    for word, message in (("a=True", "write a=true"), ("a", "expected NAME=VALUE"), ("1a=2", "NAME=VALUE")):
        with pytest.raises(ValueError, match=message):
            ModelConfig("timm:resnet18", args=(word,))
    with pytest.raises(ValueError, match="finite"):
        ModelConfig("timm:resnet18", args=("a=1e999",))
    with pytest.raises(ValueError, match="twice"):
        ModelConfig("timm:resnet18", args=("a=1", "a=2"))
    assert ModelConfig("timm:resnet18", args=("a=NaN",)).options == {"a": "NaN"}


def test_one_channel_names_the_fix_where_torchvision_takes_three() -> None:
    with pytest.raises(ValueError, match="prepare the data with 3 channels"):
        resolved("torchvision:resnet18", channels=1).build()
    resolved("timm:resnet18", channels=1).check()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    import importlib.metadata

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(
        NotBuildableError,
        match=rf"needs {library}, which is not installed; run: pip install 'signed-tickets\[networks\]'$",
    ):
        Definition.of(ModelConfig(f"{library}:resnet18"))


# ---------------------------------------------------------------------- drawing, keys and records


@pytest.mark.parametrize("name", MODELS)
def test_the_key_of_a_built_in_network_has_name_and_width_alone(name: str) -> None:
    network = Definition.of(ModelConfig(name)).sized(10, 3, 32)
    assert network.determinants == {"name": name, "width": width_of(name, None)} and network.recorded == {}


def test_theta_init_follows_from_the_seed_alone(tmp_path: Path) -> None:
    text = SMALL + "\nimport random\nimport numpy as np\ndef drawn(**sizes):\n    net = build(**sizes)\n"
    text += "    net.conv.weight.data += random.random() + np.random.rand()\n    return net\n"
    write(tmp_path / "net.py", text)
    network = resolved(f"{tmp_path / 'net.py'}:drawn")

    def theta_init(seed: int) -> str:
        return Checkpoint.of(network.draw(seed), level=0, epochs=0, level_digest="").digest

    before = torch.get_rng_state(), random.getstate(), copy.deepcopy(np.random.get_state()[1])
    assert theta_init(1) == theta_init(1) != theta_init(2)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_the_key_has_content_options_and_shapes_but_no_path(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = resolved(write(tmp_path / "net.py")).determinants
    assert first == resolved(write(tmp_path / "elsewhere" / "net.py")).determinants
    assert str(tmp_path) not in json.dumps(first) and first["name"] == "net.py:build"
    assert first != resolved(write(tmp_path / "elsewhere" / "net.py", SMALL + "\n")).determinants
    assert first["tensors"] != resolved(f"{tmp_path / 'net.py'}:build", "width=4").determinants["tensors"]
    assert first["tensors"] != resolved(f"{tmp_path / 'net.py'}:build", channels=1).determinants["tensors"]
    assert first["classifier"] != resolved(f"{tmp_path / 'net.py'}:build", classifier="conv").determinants["classifier"]


def test_a_recorded_network_is_built_again_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(network: Network) -> dict:
        sizes = {"num_classes": 7, "channels": 3, "image_size": IMAGE}
        return json.loads(json.dumps({"model": network.determinants, "spec": sizes}))

    vit = resolved("timm:test_vit", "depth=2")
    again = from_record(recorded(vit), None)
    assert again.determinants == vit.determinants and "img_size" in vit.options
    shapes, partition = rows_of(vit.recorded["network"]["tensors"])
    assert shapes == vit.shapes and partition == vit.partition

    # Phase: another version, an unknown name, another file, other shapes
    other = recorded(vit)
    other["model"]["library"] = "timm 0.1"
    with pytest.raises(NotBuildableError, match="was built with timm 0.1, and here is timm"):
        from_record(other, None)
    assert from_record(other, None, same_version=False).determinants == vit.determinants
    other["model"] |= {"tensors": "0" * 64}
    with pytest.raises(NotBuildableError, match="has other tensors here than recorded, with timm"):
        from_record(other, None, same_version=False)
    with pytest.raises(NotBuildableError, match="unknown network 'mine'"):
        from_record({"model": {"name": "mine", "width": None}, "spec": other["spec"]}, None)
    name = write(tmp_path / "net.py")
    mine, search = recorded(resolved(name)), {"model": {"name": name}}
    with pytest.raises(NotBuildableError, match="is defined in a file of its own"):
        from_record(mine, search)
    with pytest.raises(NotBuildableError, match="differs from the recorded one"):
        from_record(mine, search, source=lambda: b"raise SystemExit")
    assert from_record(mine, search, source=(tmp_path / "net.py").read_bytes).determinants == mine["model"]
    assert not [module for module in sys.modules if module.endswith("net") and "_network" in module]


@pytest.mark.parametrize(
    ("network", "foreign"),
    [
        ("timm:resnet18", lambda: timm.create_model("resnet18", num_classes=11)),
        ("torchvision:resnet18", lambda: pytest.importorskip("torchvision").models.resnet18(num_classes=11)),
        (
            "timm:swin_tiny_patch4_window7_224",
            lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=11, img_size=IMAGE),
        ),
    ],
)
def test_trained_weights_of_the_libraries_fit(network: str, foreign: Callable[[], nn.Module]) -> None:
    """Their state dicts lack buffers that are not persistent, and have a classifier of another size."""
    own = resolved(network)
    fresh = Checkpoint.of(own.draw(1), level=0, epochs=0, level_digest="")
    tensors = foreign().state_dict()
    fitted, kept = Pretrained(tensors).fitted(fresh, own.classifier, own.unsaved)[:2]
    assert kept == [f"{own.classifier[0]}.weight", f"{own.classifier[0]}.bias"]
    taken = [name for name in fitted.params if name not in kept]
    assert all(torch.equal(fitted.params[name], tensors[name]) for name in taken) and len(taken) > 50
    assert fitted.state_dict.keys() == fresh.state_dict.keys()
