"""Test training with two processes, each with its own GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
    import sys
    import torch
    from tests.training.small_training import BATCH, Fixed, network, run
    from torch import nn
    from harness.config import OptimConfig, Schedule
    from harness.distributed.world import World

    world, sync = World(), {sync}
    share = BATCH // world.size

    class Share(Fixed):
        def epoch(self, noise, epoch, skip_steps=0):
            for images, labels in super().epoch(noise, epoch, skip_steps):
                yield (part[world.rank * share : (world.rank + 1) * share] for part in (images, labels))

    model = network(nn.BatchNorm2d if sync else nn.LayerNorm)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync and world.size > 1 else model
    optim = OptimConfig(lr=0.05, max_grad_norm=0.5)
    run(model.to(world.device), world, batches=Share(device=world.device), method="aws", optim=optim)
    if world.is_main:
        torch.save({{name: tensor.cpu() for name, tensor in model.state_dict().items()}}, sys.argv[1])
    world.close()
"""


def trained(processes: int, tmp_path, device: torch.device) -> dict[str, torch.Tensor]:
    script, out = tmp_path / "train.py", tmp_path / f"{processes}.pt"
    script.write_text(textwrap.dedent(SCRIPT.format(sync=device.type == "cuda")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*launcher, str(script), str(out)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.long
def test_batch_statistics_over_two_processes_equal_those_of_one(device, tmp_path):
    """Compare `--sync-batchnorm` on two processes with one process.

    Each of two processes has half a batch. SyncBatchNorm needs CUDA. On CPUs the test uses LayerNorm instead.
    """
    pytest.importorskip("accelerate")
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    two, one = trained(2, tmp_path, device), trained(1, tmp_path, device)
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name].float(), tensor.float(), atol=1e-4), name
