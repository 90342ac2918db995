"""The processes of one launch: the only file that knows Accelerate."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast, get_args

import torch

from harness.config import Precision
from harness.distributed.heartbeat import Heartbeat, Place, lost_peer, stood_still
from harness.distributed.joining import JoinWatch
from harness.distributed.launcher_settings import check_launcher_precision, check_launcher_settings
from harness.distributed.single_process import SingleProcessAccelerator, SingleProcessState
from harness.distributed.stop import StoppedError, StopRequest

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


# For gradients this is NCCL's own limit, after which its watchdog aborts the process (TORCH_NCCL_ASYNC_ERROR_HANDLING).
# The 8 minutes of --stuck-after are fewer on purpose: that end says where each process stands.
_JOINING = timedelta(minutes=10)
"""How long a launch waits for processes that start late, or never; and gradients for those of another process."""
_WAITING = timedelta(hours=6)
"""How long all else waits: rank 0 alone fetches and delivers, and the heartbeat tells who is lost."""


class OtherRankFailedError(RuntimeError):
    """Another process failed and has said why."""


class World:
    """Ranks, device and mixed precision of this launch, with the few collective operations the harness needs.

    They go over a group of their own, on the CPU: no kernel on a GPU waits for rank 0's disk. Gradients have the other.

    Raises ValueError for launches whose numbers could not be trusted: a world other than the one asked for (the
    launcher falls back silently), FSDP, DeepSpeed, Megatron-LM and fp8.
    """

    def __init__(self, precision: str | None = "no", *, deterministic: bool = False, stuck_after: float = 0.0) -> None:
        """Join the other processes; with `precision` None, `use` must follow before the first training.

        The launch ends when a training stands still for `stuck_after` minutes; 0: never.
        """
        check_launcher_settings(os.environ)
        if precision is not None:
            _check_precision(precision)
        # before cuDNN is first used: it then measures which of its kernels is the fastest for each shape
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            self.make_deterministic()
        try:
            with JoinWatch():
                self._join(60 * stuck_after)
        except RuntimeError as error:  # torch.distributed's own, which come with a page of where they were raised
            raise ConnectionError(
                f"process {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')} on "
                f"{socket.gethostname()} could not join the others: {str(error).splitlines()[0]}; one was lost, or "
                "cannot be reached. The same command again continues from the last saved state."
            ) from error
        if precision is not None:
            try:
                self.use(precision)
            except BaseException:
                self.close()
                raise

    def _join(self, stuck_seconds: float) -> None:
        self._state = _joined()
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes
        self.device: torch.device = self._state.device
        self.is_main = self.rank == 0
        self._announced, self._chosen_by = False, ""
        self.stop = StopRequest()
        _check_world(self.size)
        self._waiting = _waiting_group(self.device) if self.size > 1 else None
        self._heartbeat = Heartbeat(self.rank, self.size, self.share_text, stuck_seconds=stuck_seconds)
        if self._waiting is not None:
            _set_timeout(_WAITING, self._waiting)

    def peer_failed(self) -> bool:
        """Whether another process has said that it failed; gives its word a moment to arrive."""
        if self.size > 1 and not self._heartbeat.peer_failed:
            time.sleep(1.0)
        return self._heartbeat.peer_failed

    def before_ending(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with the reason before this process is ended because another one failed."""
        self._heartbeat.last_words = tell

    @contextmanager
    def watching(self, label: str) -> Iterator[Place]:
        """Let other processes know where the training `label` is.

        The block stores it in the place it is given.
        """
        self._heartbeat.place = Place(label)
        try:
            yield self._heartbeat.place
        finally:
            self._heartbeat.place = None

    def use(self, precision: str) -> None:
        """Choose the mixed precision of all trainings; ValueError if it is unknown or the launcher asks for another.

        "auto" becomes bf16 where the CUDA devices of all processes have it, else no: see `precision` afterwards.
        """
        _check_precision(precision)
        chosen = self._best_precision() if precision == "auto" else precision
        _check_precision(chosen)
        self._use(chosen, _accelerator(chosen, self.device))
        self._chosen_by = " (--precision auto)" if precision == "auto" else ""

    def _best_precision(self) -> str:
        """bf16 is as fast as fp16 and needs no loss scale; emulated, as on a V100, it is slower than float32."""
        cuda = self.device.type == "cuda"
        native = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        # one precision for all processes, also where their devices differ
        return "no" if self.any(not native) else "bf16"

    def _use(self, precision: str, accelerator: Any) -> None:
        self.precision = cast(Precision, precision)
        self.accelerator = accelerator
        self.autocast: Callable[[], AbstractContextManager[Any]] = accelerator.autocast
        """Mixed precision as launched."""
        self.no_sync: Callable[[torch.nn.Module], AbstractContextManager[Any]] = accelerator.no_sync
        """Leaves gradients of a micro-batch unreduced."""
        self.backward: Callable[[torch.Tensor], None] = accelerator.backward
        """Goes backward through the (scaled) loss."""
        self._fresh_scaler = accelerator.scaler.state_dict() if accelerator.scaler else None

    @property
    def local_size(self) -> int:
        """Processes of this launch on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def device_name(self) -> str:
        """The kind of device in words: equal bits need equal kinds."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}"

    def __str__(self) -> str:
        """How many processes on what, in words."""
        processes = "1 process" if self.size == 1 else f"{self.size} processes"
        each = "" if self.device.type == "cuda" else f", threads in each: {torch.get_num_threads()}"
        usual = self.precision == "no" and self.device.type == "cpu" and not self._chosen_by
        precision = "" if usual else f", precision {self.precision}{self._chosen_by}"
        return f"{processes} on {self.device_name}{each}{precision}"

    def announce(self) -> None:
        """Say once on which device the launch computes: one that lost its GPUs says so before it trains for days."""
        if self.is_main and not self._announced:
            _log.info(str(self))
        self._announced = True

    @staticmethod
    def make_deterministic() -> None:
        """Ask CUDA for deterministic algorithms, before its first use."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False  # which kernel is the fastest is not the same every time
        torch.use_deterministic_algorithms(True)
        # else every new tensor is filled with NaN first, to show reading before writing: nothing here does
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def prepare(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: dict[str, Any] | None = None
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Wrap a model and its optimizer for one training; earlier ones are let go.

        The loss scale starts anew, or from the state `scaler`.
        """
        self.accelerator.free_memory()
        if self._fresh_scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler or self._fresh_scaler)
        wrapped, prepared = self.accelerator.prepare(model, optimizer)
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            # rank 0's buffers alone are ever used; an attribute, since the argument's name depends on torch's version
            wrapped.broadcast_buffers = False
        return wrapped, prepared

    def scaler_state(self) -> dict[str, Any]:
        """Return fp16's loss scale and its counters; empty without."""
        return dict(self.accelerator.scaler.state_dict()) if self.accelerator.scaler else {}

    def clip(self, params: list[torch.nn.Parameter], max_norm: float) -> None:
        """Unscale and clip gradients to a 2-norm."""
        self.accelerator.clip_grad_norm_(params, max_norm)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks, on the tensor's device."""
        return tensor if self.size == 1 else self._reduce(tensor, "SUM")

    def min(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the minimum over ranks, on the tensor's device."""
        return tensor if self.size == 1 else self._reduce(tensor, "MIN")

    def _reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        held = tensor.detach().to("cpu", copy=True)
        torch.distributed.all_reduce(held, op=getattr(torch.distributed.ReduceOp, how), group=self._waiting)
        return held.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.size == 1 else bool(self._reduce(torch.tensor(-int(flag)), "MIN").item())

    def share(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return rank 0's tensors on every rank, on the CPU; the others' are not looked at."""
        if self.size == 1:
            return dict(tensors)
        described = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
        shared = {}
        for name, (dtype, shape) in json.loads(self.share_text(json.dumps(described))).items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            wire = torch.uint8 if kind == torch.bool else kind
            # one layout on every rank: a broadcast goes by memory, not by index
            data = tensors[name].to(wire).contiguous() if self.is_main else torch.empty(shape, dtype=wire)
            shared[name] = self._broadcast(data).to(kind)
        return shared

    def share_text(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        if self.size == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        length = int(self._broadcast(torch.tensor(len(text.encode()))).item())
        wire = data if self.is_main else torch.zeros(max(length, 1), dtype=torch.uint8)
        return bytes(self._broadcast(wire).tolist()[:length]).decode()

    def _broadcast(self, data: torch.Tensor) -> torch.Tensor:
        # a copy: what is sent would otherwise be the caller's own memory
        sent = data.to("cpu", copy=True)
        torch.distributed.broadcast(sent, src=0, group=self._waiting)
        return sent

    def require_equal(self, what: str, hex_digest: str) -> None:
        """Raise ValueError on every rank unless all ranks hold the same digest."""
        if self.size == 1:
            return
        same = hex_digest == self.share_text(hex_digest)
        if int(self.min(torch.tensor(int(same))).item()) == 0:
            raise ValueError(f"{what} differs between processes (rank {self.rank} has {hex_digest[:12]}…)")

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0 alone while the others wait; if it raises there, every rank raises."""
        return work() if self.size == 1 else self.on_all(lambda: work() if self.is_main else None)

    def main_says(self, work: Callable[[], bool]) -> bool:
        """Run `work` on rank 0 and return its answer on every rank; if it raises there, every rank raises."""
        answer = bool(self.on_main(work))
        return answer if self.size == 1 else bool(self._broadcast(torch.tensor(int(answer))).item())

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every rank; if it raises on any, every rank raises: none is left waiting for another.

        The first rank that failed raises its own error, the others OtherRankFailedError.
        """
        if self.size == 1:
            return work()
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        first = int(self.min(torch.tensor(self.size if failure is None else self.rank)).item())
        if failure is not None and first == self.rank:
            raise failure
        if first < self.size:
            raise OtherRankFailedError(f"process {first} of {self.size} failed; see its message")
        return cast(Result, result)

    def first_on_node(self, work: Callable[[], str]) -> str:
        """Run `work` on each node's first process; return its SHA-256 on all of the node.

        `work` returns a SHA-256 in hex. The others wait. If it raises on any process, every process raises.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        word = self.on_all(lambda: "" if local_rank else work())
        if self.size == 1:
            return word
        # Row r is the word of process r, zeros unless it is its node's first. Launchers number a node's ranks in a row;
        # under one that does not, the row read here vouches for other files, and the caller hashes its own.
        words = torch.zeros(self.size, 32, dtype=torch.int32)
        words[self.rank, : len(word) // 2] = torch.tensor(list(bytes.fromhex(word)), dtype=torch.int32)
        return bytes(self.sum(words)[self.rank - local_rank].tolist()).hex()

    def close(self) -> None:
        """Leave all process groups: one left open at exit can abort the other node."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, StoppedError) and not lost_peer(error):
            # the others may wait for what this one will never join
            self._heartbeat.announce_leaving(failed=not stood_still(error))
        self._state.destroy_process_group()
        self._heartbeat.close()


def _has_accelerate() -> bool:
    return importlib.util.find_spec("accelerate") is not None


def _joined() -> Any:
    """Join the other processes by Accelerate; without it there can only be this one."""
    if not _has_accelerate():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("several processes need Accelerate, which is not installed here: pip install accelerate")
        return SingleProcessState()
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=_JOINING)


def _accelerator(precision: str, device: torch.device) -> Any:
    if not _has_accelerate():
        return SingleProcessAccelerator(precision, device)
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    lean = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[lean])


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is not supported; known: {', '.join(get_args(Precision))}")
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("fp16 mixed precision needs a GPU; use --precision bf16 or no")
    if precision != "auto":  # which is checked when the device is known
        check_launcher_precision(precision, os.environ)


def _waiting_group(device: torch.device) -> torch.distributed.ProcessGroup:
    """Return a group on the CPU for all that is no gradient."""
    # NCCL connects at its first operation: here, where `joining` watches, and not in the first training
    first = torch.zeros(1, device=device)
    torch.distributed.all_reduce(first)
    first.tolist()
    group = torch.distributed.new_group(backend="gloo", timeout=_JOINING)
    assert isinstance(group, torch.distributed.ProcessGroup)
    return group


def _set_timeout(timeout: timedelta, group: torch.distributed.ProcessGroup) -> None:
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(timeout, group)
    else:  # its name in older versions
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def _check_world(size: int) -> None:
    asked = os.environ.get("WORLD_SIZE", "1")
    # `accelerate launch --cpu --num_processes 2` starts one process, and leaves nothing but an address behind
    split = "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if split or int(asked) != size:
        raise ValueError(
            f"asked for {'several' if split else asked} processes, but Accelerate runs {size} separate one(s). On CPU "
            "launch with `accelerate launch --config_file recipes/launch/cpu_2_processes.yaml …`"
        )
