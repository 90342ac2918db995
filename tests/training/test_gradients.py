"""Test gradient sums over processes: a fixed order and few operations."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from tests.warm import REPOSITORY, torchrun

pytestmark = pytest.mark.long


TRAINING = """
    import json
    from dataclasses import replace
    import torch
    from torch import nn
    from harness.config import OptimConfig, Schedule
    from harness.common.digest import sha256_tensors
    from harness.masks import Mask
    from harness.models import build_model
    from harness.common.seeds import SgdNoise
    from harness.training.loop import train
    from harness.distributed.stop import StoppedError
    from harness.distributed.world import World
    from tests.training.small_training import Memory

    world = World()

    class Shared(Memory):
        # only rank 0 has the state

        def load(self):
            return self.state and replace(self.state, tensors=world.share(self.state.tensors))

    class Images:
        steps_per_epoch = 4

        def epoch(self, noise, epoch, skip_steps=0):
            for step in range(skip_steps, self.steps_per_epoch):
                generator = torch.Generator().manual_seed(100 * world.rank + step)
                yield torch.randn(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)

    def trained(model, saver=None):
        train(
            model, world=world, batches=Images(), noise=SgdNoise(1, ("search", 0)), optim=OptimConfig(lr=0.05),
            schedule=Schedule(1, "constant"), mask=Mask({}), view=lambda alpha: torch.enable_grad(), label="L00",
            on_epoch=lambda report: None, saver=saver,
        )
        return sha256_tensors({name: tensor.detach() for name, tensor in model.state_dict().items()})

    def say(found):
        if world.is_main:
            print(json.dumps(found))
        world.close()
"""


def launch(processes: int, script: str) -> dict:
    """Run a script in several processes; return rank 0's JSON."""
    program = textwrap.dedent(TRAINING) + textwrap.dedent(script)
    done = torchrun(processes, REPOSITORY, "--no-python", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_three_ranks_with_several_buckets_resume_to_the_same_bits():
    """Resume a training with 35 MB of gradients on three ranks.

    The order of sums matters only with three or more ranks and several buckets, because a + b = b + a.
    """
    # Phase: train without interruption, with broadcast buffers, and with interruptions
    found = launch(
        3,
        """
        def network():
            torch.manual_seed(0)
            middle = [layer for _ in range(4) for layer in (nn.Linear(1450, 1450), nn.ReLU())]
            ends = nn.Linear(192, 1450), nn.Linear(1450, 5)
            return nn.Sequential(nn.Flatten(), ends[0], nn.BatchNorm1d(1450), *middle, ends[1])

        found = {"through": trained(network()), "megabytes": sum(4 * p.numel() for p in network().parameters()) / 1e6}
        prepare = world.prepare

        def broadcasting(*args):
            wrapped = prepare(*args)
            wrapped.broadcast_buffers = True
            return wrapped

        world.prepare = broadcasting
        found["broadcasting"] = trained(network())
        world.prepare = prepare
        found["resumed"] = []
        for stop_after in (1, 3):
            memory = Shared(world, stop_after)
            try:
                trained(network(), memory)
            except StoppedError:
                world.stop._signal, memory.stop_after = None, None
                found["resumed"].append(trained(network(), memory))
        say(found)
        """,
    )
    # Phase: all three give the same bits
    assert found["megabytes"] > 26
    assert found["resumed"] == [found["through"]] * 2
    assert found["broadcasting"] == found["through"], "broadcasting buffers must not change those of rank 0"


def test_a_step_of_two_ranks_takes_few_operations():
    """Count ATen operations in forward and backward of ResNet-20.

    DDP's defaults, which broadcast buffers and look for unused parameters, take 2,149.
    """
    found = launch(
        2,
        """
        model = build_model("resnet20", num_classes=10, channels=3, image_size=8)
        wrapped, optimizer = world.prepare(model), torch.optim.SGD(model.parameters(), 0.1)
        images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
        for step in range(4):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                world.backward(nn.functional.cross_entropy(wrapped(images), labels))
                optimizer.zero_grad()
        names = [event.name for event in profiler.events()]
        say({"operations": sum(name.startswith("aten::") for name in names), "sums": names.count("c10d::allreduce_")})
        """,
    )
    assert found["operations"] <= 1350, found
    assert 1 <= found["sums"] <= 2, found
