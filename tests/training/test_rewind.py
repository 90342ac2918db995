"""Test weight rewinding: θ_k is kept, and training can start there."""

import pytest
import torch

from harness.config import OptimConfig, Schedule
from harness.distributed.stop import StoppedError
from harness.pruning.wr import RewindPoint
from tests.training.small_training import EPOCHS, STEPS, Memory, network, run

PLAIN = OptimConfig(lr=0.05, momentum=0.0, weight_decay=1e-2)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("k", [1, STEPS, STEPS + 3])
def test_without_momentum_a_training_from_k_equals_the_whole_training(world, k):
    """Start a training at θ_k and step k.

    Without momentum it equals the whole training.
    """
    whole, point = network(), RewindPoint(k, STEPS)
    run(whole, world, optim=PLAIN, hook=point)
    rewound = network()
    rewound.load_state_dict(point.params | point.buffers)
    reports = run(rewound, world, optim=PLAIN, begin=divmod(k, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(rewound).values(), strict=True))
    assert [report.epoch for report in reports] == list(range(k // STEPS, EPOCHS))


def test_k_0_keeps_the_initial_parameters(world):
    model, point = network(), RewindPoint(0, STEPS)
    before = state(model)
    run(model, world, hook=point, schedule=Schedule(0, "constant"))
    kept = point.params | point.buffers
    # the pruned layer is kept as it is under the mask
    assert all(torch.equal(before[name], kept[name]) for name in before if name != "0.weight")
    assert torch.equal(kept["0.weight"], model[0].weight)


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_training_keeps_the_same_rewind_point(world, stop_after):
    whole, expected = network(), RewindPoint(3, STEPS)
    run(whole, world, hook=expected)
    memory = Memory(world, stop_after)
    with pytest.raises(StoppedError):
        run(network(), world, hook=RewindPoint(3, STEPS), saver=memory)
    world.stop._signal = None
    resumed, point = network(), RewindPoint(3, STEPS)
    run(resumed, world, hook=point, saver=memory)
    assert point.state().keys() == expected.state().keys() and point.state()
    assert all(torch.equal(tensor, expected.state()[name]) for name, tensor in point.state().items())
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(resumed).values(), strict=True))
