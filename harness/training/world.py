"""The processes of one launch: the only file that knows Accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


class RankZeroFailedError(RuntimeError):
    """Rank 0 failed and has said why."""


class World:
    """Ranks, device and mixed precision of this launch, with the few collective operations the harness needs.

    Raises ValueError for launches whose numbers could not be trusted: a world other than the one asked for (the
    launcher falls back silently), FSDP, DeepSpeed, Megatron-LM and fp8.
    """

    def __init__(self, precision: str = "no", *, deterministic: bool = False) -> None:
        for variable, name in _REFUSED.items():
            if os.environ.get(variable, "false").lower() in ("1", "true"):
                raise ValueError(f"{name} is not supported: masks need whole parameters on every rank; launch with DDP")
        if precision not in ("no", "fp16", "bf16"):
            raise ValueError(f"precision {precision!r} is not supported; known: no, fp16, bf16")
        if precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("fp16 mixed precision needs a GPU; use --precision bf16 or no")
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if asked not in ("no", precision):
            raise ValueError(
                f"the launcher asks for {asked}, the run for {precision!r}: say --precision {asked} to the recipe"
            )
        if deterministic:
            self.make_deterministic()
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        # rank 0 alone fetches, delivers and compares, which may take longer than the ten minutes NCCL would wait
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
        self.accelerator = Accelerator(
            mixed_precision=precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[patience]
        )
        if self.accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                "set accumulation with --accumulation-steps, not in Accelerate's launcher or configuration"
            )
        self.precision = precision
        self.rank: int = self.accelerator.process_index
        self.size: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main = self.rank == 0
        _check_world(self.size)
        self._fresh_scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None

    @staticmethod
    def make_deterministic() -> None:
        """Ask CUDA for deterministic algorithms, before its first use."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Wrap a model and its optimizer for one training; earlier ones are let go, the loss scale starts anew."""
        self.accelerator.free_memory()
        if self._fresh_scaler is not None:
            self.accelerator.scaler.load_state_dict(self._fresh_scaler)
        return self.accelerator.prepare(model, optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as launched."""
        return self.accelerator.autocast()

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Leave gradients of a micro-batch unreduced."""
        return self.accelerator.no_sync(model)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward through the (scaled) loss."""
        self.accelerator.backward(loss)

    def clip(self, params: list[torch.nn.Parameter], max_norm: float) -> None:
        """Unscale and clip gradients to a 2-norm."""
        self.accelerator.clip_grad_norm_(params, max_norm)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def min(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the minimum over ranks."""
        if self.size > 1:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MIN)
        return tensor

    def share(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return rank 0's values of equally shaped CPU tensors on every rank."""
        if self.size == 1:
            return dict(tensors)
        shared = {}
        for name in sorted(tensors):
            tensor = tensors[name].to(self.device)
            wire = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.clone()
            torch.distributed.broadcast(wire, src=0)
            shared[name] = wire.to(tensor.dtype).cpu()
        return shared

    def share_flag(self, flag: bool) -> bool:
        """Return rank 0's flag on every rank."""
        return bool(self.share({"flag": torch.tensor(int(flag))})["flag"].item())

    def share_text(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = int(self.share({"length": torch.tensor(len(data))})["length"].item())
        wire = data if self.is_main else torch.zeros(length, dtype=torch.uint8)
        return bytes(self.share({"text": wire})["text"].tolist()).decode()

    def require_equal(self, what: str, hex_digest: str) -> None:
        """Raise ValueError on every rank unless all ranks hold the same digest."""
        if self.size == 1:
            return
        words = torch.tensor([int(hex_digest[start : start + 12], 16) for start in (0, 12, 24, 36)])
        same = torch.equal(words, self.share({"words": words})["words"])
        if int(self.min(torch.tensor(int(same), device=self.device)).item()) == 0:
            raise ValueError(f"{what} differs between processes (rank {self.rank} has {hex_digest[:12]}…)")

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0 alone while the others wait; if it raises there, every rank raises."""
        result, failure = None, None
        if self.is_main:
            try:
                result = work()
            except Exception as error:
                failure = error
        failed = self.share_flag(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise RankZeroFailedError("rank 0 failed; see its message")
        return result

    def close(self) -> None:
        """Leave the process group: one left open at exit can abort the other node."""
        self.accelerator.end_training()


def _check_world(size: int) -> None:
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != size:
        raise ValueError(
            f"asked for {asked} processes, but Accelerate runs {size} separate one(s). On CPU launch with "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N …`"
        )
