"""A process group of one process, which DDP needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
