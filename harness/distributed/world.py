"""The processes of one launch. This is the only file that imports Accelerate."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast, get_args

import torch

from harness.common.launched import check_address, check_launcher_numbers, launcher_number
from harness.common.machine import keep_freed_memory
from harness.common.optional import MissingLibraryError, missing
from harness.common.program import launch_file
from harness.common.waiting import heeding
from harness.config import Precision
from harness.distributed.heartbeat import Heartbeat, Place, lost_peer, stood_still
from harness.distributed.joining import JoinWatch, launcher_store
from harness.distributed.launcher_settings import check_launcher_precision, check_launcher_settings
from harness.distributed.single_process import SingleProcessState
from harness.distributed.stop import StoppedError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


# For gradients, this equals NCCL's default timeout, after which its watchdog aborts the process
# (TORCH_NCCL_ASYNC_ERROR_HANDLING). The default of --stuck-after is shorter (8 minutes), since its message names the
# position of each process.
_JOINING = timedelta(minutes=10)
"""Timeout for joining, and for reducing gradients."""
_WAITING = timedelta(hours=6)
"""Timeout of all other collective operations. Rank 0 may work alone for long; the heartbeat detects lost processes."""


class OtherRankFailedError(RuntimeError):
    """Another process failed and has printed its own error."""


SIGNALS = (
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
    *(signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
)
"""Signals that ask to stop.

Batch systems, spot instances and `kill` send those of the first row, SIGXCPU at the end of a job's CPU time. The others
are Ctrl-C, a closed terminal and Ctrl-\\.
"""

FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)
"""Repeated, these end the process at once."""
INSIST_SECONDS = 10.0
"""A signal repeated after this time has its default effect."""
ECHO_SECONDS = 0.2
"""One Ctrl-C can arrive twice within this time, for example under `timeout`."""
LAUNCHED_ECHO_SECONDS = 2.0
"""As ECHO_SECONDS, under a launcher. It passes Ctrl-C on to its workers, which also get it from the terminal."""

# Accelerate's and torch's launchers set these for their workers. Without a launcher, a new parent process only means
# that the terminal was closed.
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StopRequest:
    """Records whether this process should stop, and why."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._since = 0.0
        self._launched = any(name in os.environ for name in _LAUNCHED)
        self._parent = os.getppid() if self._launched else None
        self.last_words: Callable[[str], None] = lambda reason: None
        """Called with the reason before a repeated signal ends this process at once."""

    @property
    def reason(self) -> str | None:
        """Return the reason to stop, or None."""
        if self._signal is not None:
            return f"got {signal.Signals(self._signal).name}"
        # A launcher that is killed leaves its workers behind and forwards no signal to them.
        if self._parent is not None and os.getppid() != self._parent:
            return "the launcher is gone"
        return None

    def heed(self) -> None:
        """Raise StoppedError if this process should stop. Use it only in work that other processes do not wait for."""
        if (reason := self.reason) is not None:
            raise StoppedError(reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        r"""Store signals instead of dying while the block runs. Waits of the main thread heed them.

        A second Ctrl-C or Ctrl-\ ends the process at once. Another signal that is repeated after INSIST_SECONDS has its
        default effect.
        """
        # `nohup` lets its command ignore SIGHUP. That must stay so.
        keeps_running = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in SIGNALS if not (keeps_running and number == signal.SIGHUP)]
        before = {number: signal.signal(number, self._remember) for number in heard}
        try:
            with heeding(self.heed):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Phase: store the first signal.
        if self._signal is None:
            self._signal, self._since = number, time.monotonic()
            return

        # Phase: end at once if the signal is repeated. The launcher and the batch system may both send the first one.
        echo = LAUNCHED_ECHO_SECONDS if self._launched else ECHO_SECONDS
        if time.monotonic() - self._since > (echo if number in FROM_KEYS else INSIST_SECONDS):
            with suppress(Exception):
                self.last_words(f"{self.reason}, then {signal.Signals(number).name} again")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class World:
    """Ranks, device and mixed precision of this launch, and the collective operations that the harness needs.

    Gradients use the default process group. All other operations use a separate gloo group on the CPU. So no GPU kernel
    waits while rank 0 reads or writes files.
    """

    def __init__(self, precision: str | None = "no", *, deterministic: bool = False, stuck_after: float = 0.0) -> None:
        """Join the other processes of the launch.

        Args:
            precision: Mixed precision of all trainings. With None, call `use` before the first training.
            deterministic: Whether to use deterministic algorithms only.
            stuck_after: The launch ends when a training makes no progress for this many minutes; 0: never.

        Raises:
            ConnectionError: The processes could not join.
            ValueError: The launcher's settings would make the results invalid, such as FSDP, DeepSpeed, Megatron-LM or
                fp8. Or the world size is not the requested one, about which the launcher does not warn.
        """
        # Phase: check and apply the settings.
        check_launcher_numbers()
        check_launcher_settings(os.environ)
        if precision is not None:
            _check_precision(precision)
        # Must precede the first use of cuDNN. benchmark=True measures the fastest kernel for each shape.
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            self.make_deterministic()

        # Phase: join the other processes.
        try:
            with JoinWatch():
                self._join(60 * stuck_after)
        except RuntimeError as error:  # keep only the first line of torch.distributed's long messages
            raise ConnectionError(
                f"process {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')} on "
                f"{socket.gethostname()} could not join the others: {str(error).splitlines()[0]}; a process was lost, "
                "or is unreachable. Run the same command again to resume from the last saved state."
            ) from error

        # Phase: choose the precision.
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
        if self.device.type == "cpu":
            keep_freed_memory()
        self.is_main = self.rank == 0
        self._accelerator: Any = _accelerator() if self.size > 1 else None
        self._announced, self._chosen_by = False, ""
        self.stop = StopRequest()
        _check_world(self.size)
        self._waiting = _waiting_group(self.device) if self.size > 1 else None
        self._heartbeat = Heartbeat(self.rank, self.size, self.share_text, stuck_seconds=stuck_seconds)
        if self._waiting is not None:
            _set_timeout(_WAITING, self._waiting)

    def peer_failed(self) -> bool:
        """Return whether another process has reported a failure. Wait up to one second for its report."""
        if self.size > 1 and not self._heartbeat.peer_failed:
            time.sleep(1.0)
        return self._heartbeat.peer_failed

    def before_ending(self, tell: Callable[[str], None]) -> None:
        """Register `tell`, to be called with the reason before the heartbeat ends this process.

        It is called only if another process failed, not if it died.
        """
        self._heartbeat.last_words = tell

    @contextmanager
    def watching(self, label: str) -> Iterator[Place]:
        """Report the position of the training `label` to the other processes while the block runs.

        The block must keep the yielded `Place` up to date.
        """
        self._heartbeat.place = Place(label)
        try:
            yield self._heartbeat.place
        finally:
            self._heartbeat.place = None

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Exempt the block from the watch over a training's progress. All ranks must run it."""
        place, self._heartbeat.place = self._heartbeat.place, None
        try:
            yield
        finally:
            self._heartbeat.place = place

    def use(self, precision: str) -> None:
        """Choose the mixed precision of all trainings.

        "auto" selects bf16 if the CUDA devices of all processes support it natively, and "no" otherwise. The attribute
        `precision` then holds the choice.

        Raises:
            ValueError: The precision is unknown or not available, or the launcher requests another one.
        """
        _check_precision(precision)
        chosen = self._best_precision() if precision == "auto" else precision
        _check_precision(chosen)
        self._use(chosen)
        self._chosen_by = " (--precision auto)" if precision == "auto" else ""

    def _best_precision(self) -> str:
        """Return the precision for "auto", equal on all ranks even if their devices differ.

        bf16 is as fast as fp16 and needs no loss scaling. Emulated bf16, as on a V100, is slower than float32.
        """
        cuda = self.device.type == "cuda"
        native = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "no" if self.any(not native) else "bf16"

    def _use(self, precision: str) -> None:
        self.precision = cast(Precision, precision)
        dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            partial(torch.autocast, self.device.type, dtype) if dtype else nullcontext
        )
        """Returns the context manager of the chosen mixed precision."""
        self._scaler = scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self.backward: Callable[[torch.Tensor], None] = (
            torch.Tensor.backward if scaler is None else lambda loss: scaler.scale(loss).backward()
        )
        """Runs the backward pass of the loss, scaled under fp16."""
        self._fresh_scaler = self.scaler_state()

    @property
    def local_size(self) -> int:
        """Return the number of processes of this launch on this node."""
        return launcher_number("LOCAL_WORLD_SIZE", 1)

    @property
    def device_name(self) -> str:
        """Return the device's model, or for a CPU its instruction set. Equal bits require equal names."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}"

    def __str__(self) -> str:
        """Describe the number of processes, device, threads and precision."""
        processes, model = "1 process" if self.size == 1 else f"{self.size} processes", self.device_name
        placed = f"{processes} on {model}"
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            each = f", {threads} thread{'s' * (threads > 1)}{' each' * (self.size > 1)}"
            placed = f"{processes.replace(' ', ' CPU ')} ({model.removeprefix('cpu ')}){each}"
        usual = self.precision == "no" and self.device.type == "cpu" and not self._chosen_by
        precision = "" if usual else f", precision {self.precision}{self._chosen_by}"
        return f"{placed}{precision}"

    def announce(self, work: str = "", runs: Path | None = None) -> None:
        """Log once the work of the launch, its devices and its directory of runs, so that errors are noticed early."""
        if self.is_main and not self._announced:
            parts = [work, str(self), f"runs in {runs}{os.sep}" if runs else ""]
            _log.info("; ".join(part for part in parts if part))
        self._announced = True

    @staticmethod
    def make_deterministic() -> None:
        """Enable deterministic algorithms. Call this before the first use of CUDA."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False  # the fastest kernel differs between executions
        torch.use_deterministic_algorithms(True)
        # By default, deterministic mode fills each new tensor with NaN. It is off, since no code reads such memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def prepare(self, model: torch.nn.Module, scaler: dict[str, Any] | None = None) -> torch.nn.Module:
        """Return the model of one training, wrapped in DDP on several ranks. Release that of the last training.

        Args:
            model: The model, on this process's device.
            scaler: State of the fp16 loss scaler to resume from. None: the initial scale.
        """
        if self._scaler is not None:
            self._scaler.load_state_dict(scaler or self._fresh_scaler)
        if self.size == 1:
            return model
        self._accelerator.free_memory()
        wrapped: torch.nn.parallel.DistributedDataParallel = self._accelerator.prepare(model)
        # Only rank 0's buffers are used later. Set the attribute: the argument's name depends on torch's version.
        wrapped.broadcast_buffers = False
        return wrapped

    def seed(self, seed: int) -> None:
        """Seed torch's generators of the CPU and of this process's device. `torch.manual_seed` walks all devices."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)  # the current device

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Return a context manager in which the wrapped model's gradients are not reduced over ranks."""
        return model.no_sync() if isinstance(model, torch.nn.parallel.DistributedDataParallel) else nullcontext()

    def clip(self, optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], max_norm: float) -> None:
        """Unscale the gradients and clip their total 2-norm to `max_norm`."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, max_norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters. Under fp16, skip a step that overflowed, and update the loss scale."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def scaler_state(self) -> dict[str, Any]:
        """Return the state of the fp16 loss scaler; empty in other precisions."""
        return dict(self._scaler.state_dict()) if self._scaler else {}

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
        """Return whether `flag` is true on any rank."""
        return flag if self.size == 1 else bool(self._reduce(torch.tensor(-int(flag)), "MIN").item())

    def share(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Broadcast rank 0's tensors to every rank, on the CPU. Other ranks' arguments are ignored."""
        if self.size == 1:
            return dict(tensors)
        described = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
        shared = {}
        for name, (dtype, shape) in json.loads(self.share_text(json.dumps(described))).items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            # Gloo sends neither bool nor float8. Both have one byte.
            wire = torch.uint8 if kind.itemsize == 1 else kind
            # A broadcast copies memory in order, so all ranks need the same (contiguous) layout.
            data = tensors[name].contiguous().view(wire) if self.is_main else torch.empty(shape, dtype=wire)
            shared[name] = self._broadcast(data).view(kind)
        return shared

    def share_text(self, text: str) -> str:
        """Broadcast rank 0's text to every rank."""
        if self.size == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        length = int(self._broadcast(torch.tensor(len(text.encode()))).item())
        wire = data if self.is_main else torch.zeros(max(length, 1), dtype=torch.uint8)
        return bytes(self._broadcast(wire).tolist()[:length]).decode()

    def _broadcast(self, data: torch.Tensor) -> torch.Tensor:
        # Copy, so that the broadcast cannot write into the caller's memory.
        sent = data.to("cpu", copy=True)
        torch.distributed.broadcast(sent, src=0, group=self._waiting)
        return sent

    def require_equal(self, what: str, hex_digest: str) -> None:
        """Raise ValueError on every rank unless all ranks hold the same digest of `what`."""
        if self.size == 1:
            return
        same = hex_digest == self.share_text(hex_digest)
        if int(self.min(torch.tensor(int(same))).item()) == 0:
            raise ValueError(f"{what} differs between processes (rank {self.rank} has {hex_digest[:12]}…)")

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0 while the others wait. Other ranks return None. If it raises, every rank raises."""
        return work() if self.size == 1 else self.on_all(lambda: work() if self.is_main else None)

    def main_says(self, work: Callable[[], bool]) -> bool:
        """Run `work` on rank 0 and return its answer on every rank. If it raises, every rank raises."""
        answer = bool(self.on_main(work))
        return answer if self.size == 1 else bool(self._broadcast(torch.tensor(int(answer))).item())

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every rank and wait for all of them. If it raises on one rank, every rank raises.

        Raises:
            Exception: The error of `work`, on the lowest rank that failed.
            OtherRankFailedError: On all other ranks.
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
        """Run `work` on the first process of each node, and return its result on all processes of the node.

        The other processes wait. If `work` raises on one process, every process raises.

        Args:
            work: Returns a SHA-256 in hex.
        """
        local_rank = launcher_number("LOCAL_RANK", 0)
        word = self.on_all(lambda: "" if local_rank else work())
        if self.size == 1:
            return word
        # Row r is the digest from rank r, or zeros if rank r is not the first of its node. Ranks of a node should be
        # consecutive. Otherwise the digest belongs to other files, and the caller falls back to hashing its own.
        words = torch.zeros(self.size, 32, dtype=torch.int32)
        words[self.rank, : len(word) // 2] = torch.tensor(list(bytes.fromhex(word)), dtype=torch.int32)
        return bytes(self.sum(words)[self.rank - local_rank].tolist()).hex()

    def close(self) -> None:
        """Leave all process groups. A group that is open at exit can abort processes on another node."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, StoppedError) and not lost_peer(error):
            # The other processes may wait in a collective operation that this process will never enter.
            self._heartbeat.announce_leaving(failed=not stood_still(error))
        self._state.destroy_process_group()
        self._heartbeat.close()


def _has_accelerate() -> bool:
    return importlib.util.find_spec("accelerate") is not None


def _joined() -> Any:
    """Join the other processes through Accelerate. Without Accelerate, only a single process is supported."""
    if not _has_accelerate():
        if launcher_number("WORLD_SIZE", 1) > 1:
            raise MissingLibraryError(missing("accelerate", "a launch of several processes"), name="accelerate")
        return SingleProcessState()
    from accelerate import PartialState

    # Given explicitly, because torch's own store would still have the addresses of an earlier start.
    store = launcher_store(_JOINING)
    ranks = {"rank": launcher_number("RANK", 0), "world_size": launcher_number("WORLD_SIZE", 1)}
    own = {} if store is None else {"store": store, **ranks}
    try:
        return PartialState(cpu=not torch.cuda.is_available(), timeout=_JOINING, **own)
    except (RuntimeError, ValueError):
        check_address()  # Accelerate's and torch's messages name no variable to change
        raise


def _accelerator() -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # It wraps models only. `World` itself has autocast and the loss scaler, and steps the optimizer: Accelerate's
    # optimizer searches the file system at every step.
    lean = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available(), kwargs_handlers=[lean])


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is not supported; known: {', '.join(get_args(Precision))}")
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("fp16 mixed precision needs a GPU; use --precision bf16 or no")
    if precision != "auto":  # "auto" is checked again once it is resolved
        check_launcher_precision(precision, os.environ)


def _waiting_group(device: torch.device) -> torch.distributed.ProcessGroup:
    """Create the gloo group for all collective operations except gradient reduction."""
    # NCCL connects at its first operation. Do it now, while `joining` watches, and not in the first training.
    first = torch.zeros(1, device=device)
    torch.distributed.all_reduce(first)
    first.tolist()
    group = torch.distributed.new_group(backend="gloo", timeout=_JOINING)
    assert isinstance(group, torch.distributed.ProcessGroup)
    return group


def _set_timeout(timeout: timedelta, group: torch.distributed.ProcessGroup) -> None:
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(timeout, group)
    else:  # the name in older torch versions
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def _check_world(size: int) -> None:
    asked = launcher_number("WORLD_SIZE", 1)
    # `accelerate launch --cpu --num_processes 2` starts only one process. Its only trace is MASTER_ADDR.
    split = "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if split or asked != size:
        raise ValueError(
            f"asked for {'several' if split else asked} processes, but Accelerate runs {size} separate one(s). On a "
            f"CPU, use `accelerate launch --config_file {launch_file('cpu_2_processes.yaml')} …`"
        )
