"""A replacement in plain PyTorch for the part of Accelerate that a single process uses."""

from __future__ import annotations

import torch


class SingleProcessState:
    """State of a single process where Accelerate is not installed: rank 0 of 1, on the first GPU if there is one."""

    process_index = 0
    num_processes = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def destroy_process_group(self) -> None:
        """Do nothing: there is no process group."""
