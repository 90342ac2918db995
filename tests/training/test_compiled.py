"""Test compiled networks: the progress line, and every network against itself uncompiled."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F

from harness.models import MODELS, build_model, partition_of
from harness.pruning import METHODS, NormState
from harness.training import compiled
from harness.training.compiled import CompilingProgress, compile_, num_graphs, require_compiler


class Bar:
    """Record the calls of a progress bar."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.postfix = ""

    def update(self, n: int = 1) -> None:
        self.calls.append(n)

    def set_postfix_str(self, s: str) -> None:
        self.calls.append(s)

    def unpause(self) -> None:
        self.calls.append("unpause")


def test_the_progress_line_excludes_compiling_from_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = 0
    monkeypatch.setattr(compiled, "num_graphs", lambda: graphs)
    bar = Bar()
    counted = CompilingProgress(bar, graphs=0, since=0.0)
    counted.update(0)
    graphs = 2
    counted.update(1)
    counted.update(1)
    assert bar.calls == ["compiling", 0, "compiling: 0 s", "unpause", 1, 1]
    assert CompilingProgress(later := Bar(), graphs=2) and later.calls == []


@pytest.mark.long
def test_a_trial_of_the_compiler_counts_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters["stats"], "unique_graphs", 7)
    require_compiler.cache_clear()
    require_compiler(torch.device("cpu"))
    assert num_graphs() == 7


SIZES = {"resnet50": 64, "mobilenet_v2": 64}
"""Networks for large images; all others train on 32×32."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_network_compiles_one_graph_and_trains_two_steps(name: str) -> None:
    """Train two AWS steps with other α, compiled and not.

    In float64: BatchNorm of four images amplifies the roundings of float32 to some percent of the second loss.
    """
    # Phase: two equal networks, one compiled
    torch._dynamo.reset()  # an equal network of another test would lend its graph
    torch.manual_seed(0)
    size = SIZES.get(name, 32)
    model = build_model(name, num_classes=10, channels=3, image_size=size)
    model.to(memory_format=torch.channels_last).double()
    other = deepcopy(model)
    compile_(other, "default")
    images_NCHW = torch.randn(4, 3, size, size, dtype=torch.float64).to(memory_format=torch.channels_last)
    labels_N = torch.randint(10, (4,))
    norm, before, losses = sorted(partition_of(name, model).norm), num_graphs(), []

    # Phase: two steps each, in inference mode of dropout, whose draws differ between both
    for one in (model, other):
        params, mine = dict(one.named_parameters()), []
        for module in one.modules():
            if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0
        view = METHODS["aws"].view(NormState([params[n] for n in norm], [params[n].detach() * 0.5 for n in norm]))
        optimizer = torch.optim.SGD(params.values(), lr=0.01)
        for alpha in (0.2, 0.7):
            with view(alpha):
                loss = F.cross_entropy(one(images_NCHW), labels_N)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mine.append(float(loss.detach()))
        losses.append(mine)
    assert num_graphs() - before == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-7)
