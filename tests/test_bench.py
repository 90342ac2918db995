"""Test tools/bench.py: a quick run from the command line, missed goals, and benchmarks that fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from harness.distributed.world import World
from harness.models import build_model, partition_of
from harness.pruning import prune
from tools.benchmarks import lineage, published
from tools.benchmarks.measure import Goal, Row, compared, in_turns
from tools.benchmarks.steps import NOISE, Case, PublishedStep, SparseNetwork, counted_in_turns, question

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tool", REPOSITORY / "tools" / "bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_a_quick_run_prints_the_table_and_writes_json(tmp_path):
    written = tmp_path / "bench.json"
    command = [sys.executable, "tools/bench.py", "--quick", "--only", "mask_size", "--json", str(written)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(written.read_text())
    by_name = {row["name"]: row for row in result["rows"]}
    assert [row["benchmark"] for row in result["rows"]] == ["mask_size", "mask_size"]
    for name, row in by_name.items():
        assert name in done.stdout
        assert row["note"] in done.stdout
        assert row["value"] == pytest.approx(row["ours"] / row["reference"])
    # file sizes do not depend on the machine, so the goals must be met
    assert all(row["verdict"] == "met" and row["ours"] <= row["reference"] for row in result["rows"])
    for about in ("date", "hardware", "versions", "code"):
        assert f"{about:8}  {result[about]}" in done.stdout
    assert "cores" in result["hardware"]
    assert "torch 2" in result["versions"]
    assert "quick" in result["run"]


@pytest.mark.long
def test_pruning_is_timed_against_torchs_and_both_must_be_exact(monkeypatch):
    """Time pruning of ResNet-20 instead of ResNet-50, to save time.

    For ResNet-50 only the exactness check runs.
    """
    _, params, *masks = lineage.resnet50()
    for mask in masks:
        lineage.require_exact(params, mask, prune(params, mask, lineage.FRACTION))
    with pytest.raises(RuntimeError, match="pruning is not exact"):
        lineage.require_exact(params, masks[0], prune(params, masks[0], 0.3))
    monkeypatch.setattr(lineage, "build_model", lambda name, **size: build_model("resnet20", **size))
    monkeypatch.setattr(lineage, "partition_of", lambda name, model: partition_of("resnet20", model))
    for row, what in zip(lineage.prune(quick=True), ("dense", "at density 0.1"), strict=True):
        assert what in row.name and row.note.endswith(" kept, exact")
        assert row.ours and row.reference and row.value == pytest.approx(row.ours / row.reference)


@pytest.mark.long
def test_the_published_search_prunes_trains_and_saves_each_level(tmp_path, monkeypatch, capsys):
    for split in ("train", "test"):
        images = torch.randint(256, (16, 32, 32, 3), dtype=torch.uint8)
        save_file({"images_NHWC": images, "labels": torch.arange(16)}, tmp_path / f"{split}.safetensors")
    monkeypatch.setattr(published, "NETWORK", "resnet8")
    monkeypatch.chdir(tmp_path)
    published.main(tmp_path, levels=1)
    assert len(capsys.readouterr().out.splitlines()) == 4  # a training and a test for each of two levels
    for level, density in ((0, 1.0), (1, 0.8)):
        tensors = load_file(f"level-{level}.safetensors")
        masks = {name.removeprefix("mask."): mask for name, mask in tensors.items() if name.startswith("mask.")}
        kept, number = (sum(int(part) for part in parts) for parts in zip(*map(counts, masks.values()), strict=True))
        assert kept / number == pytest.approx(density, abs=1e-4)


def counts(mask: torch.Tensor) -> tuple[int, int]:
    return int(mask.count_nonzero()), mask.numel()


def test_a_missed_goal_is_marked_and_is_no_error(bench, monkeypatch, capsys):
    rows = [Row("slow thing", 2.0, Goal(most=1), "a note"), Row("fast thing", 0.5, Goal(most=1))]
    monkeypatch.setattr(bench, "run", lambda *options: rows)
    assert bench.main(bench.parse(["--only", "prune"])) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[-1] for line in lines if line.startswith(("slow thing ", "fast thing "))]
    assert found == ["MISSED", "met"]
    assert "1 of 2 goals met" in lines and "slow thing: a note" in lines


def test_a_ratio_is_the_median_over_alternating_measurements():
    row = compared("speed", [2.0, 4.0, 9.0], [1.0, 4.0, 3.0], Goal(most=2))
    assert (row.value, row.interval, row.ours, row.reference, row.verdict) == (2.0, (1.0, 3.0), 4.0, 3.0, "met")
    assert compared("time", [2.0], [6.0], Goal(least=3), faster=True).value == 3.0
    assert Goal(least=3).verdict(2.9) == "MISSED" and Goal(least=3).verdict(None) == "not measured"


def test_the_order_alternates_after_a_warm_up():
    calls: list[str] = []
    ways = {name: lambda name=name: float(calls.append(name) or len(calls)) for name in ("a", "b")}
    assert in_turns(ways, 2) == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
    assert calls == ["a", "b", "a", "b", "b", "a"]


def test_a_failed_benchmark_is_named_and_the_others_run(bench, tmp_path, monkeypatch, capsys):
    def rows(name: str, *options: object) -> list[Row]:
        if name == "prune":
            raise RuntimeError("not exact")
        return [Row("other thing", 1.0, Goal(most=1))]

    monkeypatch.setattr(bench, "run", rows)
    written = tmp_path / "bench.json"
    asked = ["--only", "step", "prune", "mask_size", "--json", str(written)]
    assert bench.main(bench.parse(asked)) == 1
    result = json.loads(written.read_text())
    assert [row["benchmark"] for row in result["rows"]] == ["step", "mask_size"] and "prune" in result["broken"]
    out = capsys.readouterr().out
    assert "BROKEN  prune: RuntimeError: not exact" in out
    assert "other thing" in out


@pytest.mark.long
def test_the_published_implementation_learns_the_same_weights():
    """Compare `PublishedStep` with the harness's loop after three steps.

    In `PublishedStep` each norm layer interpolates its own parameters. Here all layers get the same α.
    """
    network = SparseNetwork(Case("resnet8", batch_size=8, image_size=16, num_classes=10, steps=1, rounds=1), World())
    for value in network.initial.values():
        value.add_(0.3)  # with biases of 0 their interpolation would have no effect
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)) for _ in range(3)]
    ours = network.model()

    class Fixed:
        steps_per_epoch = len(batches)

        def epoch(self, noise, epoch, skip_steps=0):
            return iter(batches)

    # Phase: train with both implementations on the same batches and α
    network.train(ours, "aws", Fixed())
    number = sum(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules())
    alphas = iter([float(alpha) for alpha in NOISE.alphas(0, 3) for _ in range(number)])
    step = PublishedStep(network, lambda: next(alphas))
    for images, labels in batches:
        step(images, labels)
    assert next(alphas, None) is None
    # Phase: compare masked weights and ψ
    learnt = dict(step.model.named_parameters())
    for name, param in ours.named_parameters():
        kept = network.mask.tensors.get(name, torch.ones_like(param))
        assert torch.allclose(param, learnt[name] * kept, atol=1e-5), name
        assert not torch.equal(param, network.model().get_parameter(name))


@pytest.mark.long
def test_graphs_compiled_during_a_timing_are_counted():
    sizes, every_size_anew = iter(range(2, 9)), torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    compiled_once = torch.compile(lambda x: x * 2, backend="eager")
    ways = {
        "anew": lambda: float(every_size_anew(torch.ones(next(sizes))).sum()),
        "once": lambda: float(compiled_once(torch.ones(1))),
    }
    timed, graphs = counted_in_turns(ways, 3)
    assert graphs == 3 and timed["once"] == [2.0] * 3  # only `anew` compiles after its first call


class MovedBytes(TorchDispatchMode):
    """Sum the bytes that each eager kernel reads and writes. Views count as 0."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and func is not torch.ops.aten.detach.default:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def work_of(name: str, image_size: int, batch_size: int, num_classes: int, bf16: bool = True) -> tuple[float, float]:
    """Count the work of a training step on fake tensors without memory.

    Args:
        name: Name of the network.
        image_size: Side of the images in pixels.
        batch_size: Number of images per batch.
        num_classes: Number of classes.
        bf16: Whether to use autocast to bfloat16.

    Returns:
        FLOPs and moved bytes, both per image.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(name, num_classes=num_classes, channels=3, image_size=image_size)
        images_NCHW = torch.empty(batch_size, 3, image_size, image_size)
        labels_N = torch.zeros(batch_size, dtype=torch.int64)
        with FlopCounterMode(display=False) as operations, MovedBytes() as moved:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = torch.nn.functional.cross_entropy(model(images_NCHW).float(), labels_N)
            loss.backward()
    return operations.get_total_flops() / batch_size, moved.total / batch_size


@pytest.mark.long
def test_flops_of_resnet50_equal_the_known_number():
    """Expect 4.089 G multiply-adds forward, and twice as many backward.

    The backward pass needs no gradient of the images. There the first layer counts only once.
    """
    operations, moved = work_of("resnet50", 224, 2, 1000)
    first_layer = 64 * 112 * 112 * 3 * 7 * 7
    assert operations == pytest.approx(2 * (3 * 4.089e9 - first_layer), rel=1e-3)
    operations_float32, moved_float32 = work_of("resnet50", 224, 2, 1000, bf16=False)
    assert operations_float32 == operations and 1.3 < moved_float32 / moved < 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "name", "sizes"),
    [
        ("ResNet-50, 224², batch 256", "resnet50", (224, 256, 1000)),
        ("ResNet-50, CIFAR stem, 32², batch 128", "resnet50_cifar", (32, 128, 100)),
        ("MobileNetV2, 32², batch 128", "mobilenet_v2_cifar", (32, 128, 100)),
        ("ResNet-20, 32², batch 128", "resnet20", (32, 128, 100)),
    ],
)
def test_performance_page_states_the_throughput_limits(words, name, sizes):
    """Check the throughput limits in docs/performance.md.

    NVIDIA's data sheets of the SXM boards state 989 TFLOP/s in bf16. The bandwidth is 3.35 TB/s (H100) or 4.8 TB/s
    (H200).
    """
    lines = (REPOSITORY / "docs" / "performance.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {words} |"))
    found = [cell.strip().removesuffix(" images/s") for cell in line.split("|")[2:-1]]
    operations, moved = work_of(name, *sizes)
    limits = [f"{limit:,.0f}" for limit in (989e12 / operations, 3.35e12 / moved, 4.8e12 / moved)]
    assert found == [f"{operations / 1e9:.2f} G", f"{moved / 1e6:.0f} MB", *limits]


@pytest.mark.long
def test_both_barrier_implementations_find_the_same_errors():
    asked = question(Case("resnet8", 64, 16, 10, steps=4, rounds=1), torch.device("cpu"), (0.0, 0.3, 1.0))
    errors = asked.ours()
    assert asked.plain() == errors
    assert len(set(errors)) == 3
