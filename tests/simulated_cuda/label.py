"""Simulate a CUDA device on the CPU.

This tests CUDA code paths without a GPU. Inside `simulated_cuda`, a tensor that is created on or moved to "cuda" is a
`Labelled`. It holds a plain CPU tensor and reports the device `cuda:0`. Every operation passes through `_Dispatcher`,
which does three things.

1. It refuses operations that mix labelled tensors and CPU tensors, with torch's error message.
2. It records where the host would wait for the device. These are reads of values, blocking copies, results whose shape
   depends on values, and Boolean or CPU indices. Each wait names its file and line.
3. It counts the kernels that an operation would launch. Views and empty tensors launch none. A foreach operation
   launches one kernel if all its tensors have the same layout.

Limits of the simulation:

* Kernels. All operations run on the CPU. The order of sums, TF32, cuDNN, cuBLAS, faults of fused kernels and
  non-deterministic CUDA operations are not simulated. Nor are dtypes and layouts that a CUDA kernel refuses.
* Streams and events. They have no effect. A missing synchronisation gives correct values in the simulation and wrong
  ones on CUDA. A copy into page-locked memory completes immediately.
* NCCL and several GPUs. There is one device and one process.
* FFCV's copy to the device, with its page-locked buffers and its stream.
* Autocast. Autocast for "cuda" becomes autocast for "cpu". The operations that run in bf16 or fp16 are those of the
  CPU's list.
* Random numbers. They come from the CPU's generator.
* Memory. Peaks, fragmentation and failing allocations are not simulated.
* Time. Waits are counted, not measured.
* Device queries in C++. They return "cpu". Therefore `plain.to(labelled)` stays on the CPU, and
  `zeros_like(labelled, device="cpu")` returns a labelled tensor. A later operation with mixed devices reveals this.
* CPU scalars (dim 0) in an operation with labelled tensors. The simulation accepts them. CUDA accepts most of them.
* Identity of parameters. `module.to("cuda")` creates new parameters here. On CUDA they remain the same objects.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # optimizers import it late, and it must not be imported while torch is patched
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data.memory_loader import _places, _tables
from harness.training.feed import _constants

DEVICE = torch.device("cuda", 0)
REPOSITORY = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).resolve())
_DISPATCHING = {torch._ops.__file__, torch.utils._python_dispatch.__file__}
aten = torch.ops.aten

_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
"""Operations that return a Python value."""
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_SHAPED_BY_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_NO_KERNEL = {"alias", "detach", "_reshape_alias", "_unsafe_view", "lift_fresh", "unbind", "split", "split_with_sizes"}
_NO_KERNEL |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"}


@dataclass(frozen=True)
class Wait:
    """A point where the host would wait for the device."""

    operation: str
    place: str
    """Innermost line of this repository on the stack, and the line of the library that it called, if any."""
    callers: frozenset[str]
    """Qualified names of this repository's functions on the stack."""
    inside: str
    """Value of `Record.inside` at the time of the wait."""

    def __str__(self) -> str:
        return f"{self.operation} at {self.place}"


@dataclass
class Record:
    """Waits and kernels since the start of the simulation, or since `clear`."""

    waits: list[Wait] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    inside: str = ""
    """Name that a test gives to the current phase. Every wait stores it."""
    refuses: bool = False
    """Whether a wait raises an error, as after `torch.cuda.set_sync_debug_mode("error")`."""

    def clear(self) -> None:
        """Delete all recorded waits and kernels."""
        self.waits.clear()
        self.kernels.clear()

    def wait(self, operation: str) -> None:
        """Record a wait.

        Raises:
            RuntimeError: If waits are refused.
        """
        place, callers = _whereabouts()
        self.waits.append(Wait(operation, place, callers, self.inside))
        if self.refuses:
            raise RuntimeError(f"called a synchronizing CUDA operation: {operation} at {place}")

    def launch(self, func: Any, args: Sequence[Any]) -> None:
        """Count the kernels of an operation."""
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in _NO_KERNEL:
            return
        self.kernels[name] += _foreach_launches(args) if name.startswith("_foreach_") else 1


def listing(waits: Iterable[Wait]) -> str:
    """List waits for the message of a failed assertion.

    Returns:
        One line per place with its number of waits, most frequent first.
    """
    counts = Counter(str(wait) for wait in waits)
    return "\n".join(f"{count} × {text}" for text, count in counts.most_common()) or "no waits"


def _foreach_launches(args: Sequence[Any]) -> int:
    """Return the number of kernels of a foreach operation.

    It is 1 if corresponding tensors of the lists have the same dtype, shape and strides. Otherwise CUDA launches one
    kernel per tensor.
    """
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor)]
    first = lists[0]
    alike = all(
        (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        for other in lists[1:]
        for a, b in zip(first, other, strict=True)
    )
    return 1 if alike else len(first)


def _whereabouts() -> tuple[str, frozenset[str]]:
    """Inspect the stack.

    Returns:
        `Wait.place` and `Wait.callers`. Frames of this file are ignored.
    """
    frame = sys._getframe(2)
    place, beneath, callers = "", "", set()
    while frame is not None:
        path = frame.f_code.co_filename
        if path != _HERE:
            if path.startswith(str(REPOSITORY)) and "site-packages" not in path:
                callers.add(frame.f_code.co_qualname)
                line = linecache.getline(path, frame.f_lineno).strip()
                place = place or f"{Path(path).relative_to(REPOSITORY)}:{frame.f_lineno}: {line}"
            elif not place and not beneath and path not in _DISPATCHING:
                beneath = f" (in {'/'.join(Path(path).parts[-2:])}:{frame.f_lineno})"
        frame = frame.f_back
    return f"{place or 'outside the repository'}{beneath}", frozenset(callers)


class Labelled(torch.Tensor):
    """A tensor that reports the device `cuda:0`. Its values are those of `held`, a plain CPU tensor."""

    held: torch.Tensor
    _record: Record
    _leaving = False
    """Whether `to` is moving a tensor to the CPU.

    C++ also passes the device "cpu" in other copies, because it sees labelled tensors there. This flag marks real ones.
    """

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Labelled:
        made = torch.Tensor._make_subclass(cls, held, False)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(cls._record, func, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        here, dtype = device is None or device.type == "cuda", dtype or self.dtype
        layout = torch.preserve_format if layout is None else layout
        as_it_is = layout == torch.preserve_format or self.is_contiguous(memory_format=layout)
        if here and dtype == self.dtype and as_it_is and not copy:
            return self
        Labelled._leaving = not here
        try:
            where = DEVICE if here else device
            return aten._to_copy(self, dtype=dtype, device=where, non_blocking=non_blocking, memory_format=layout)
        finally:
            Labelled._leaving = False

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, *args: Any, **kwargs: Any) -> Labelled:
        return self

    def tolist(self) -> Any:
        self._record.wait("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy

    def pin_memory(self, *args: Any) -> Any:
        raise RuntimeError(f"cannot pin 'torch.cuda.{self.dtype}' only dense CPU tensors can be pinned")

    def record_stream(self, stream: Any) -> None:
        pass

    def __deepcopy__(self, memo: Any) -> Any:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            made._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        self._record.wait("repr")
        return f"Labelled({self.held!r})"


class _Pinned:
    """The storages that count as page-locked memory.

    They are kept alive, so that no other storage gets the same address.
    """

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}

    def pin(self, tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        if tensor in self:
            return tensor
        return self.add(torch.empty_like(tensor).copy_(tensor))

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return tensor

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._storages


_pinned = _Pinned()


class _Dispatcher(TorchDispatchMode):
    """Intercept every operation, including those that create a tensor on "cuda"."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's wrapper would be slower than most operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(self.record, func, args, kwargs or {})


def _operate(record: Record, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Check, count and compute one operation.

    Raises:
        RuntimeError: If the operation mixes devices.
    """
    if func is torch.ops.prim.device.default:
        return args[0].device
    asked = kwargs.get("device")
    tensors = list(_tensors((args, *kwargs.values())))
    labelled = [tensor for tensor in tensors if isinstance(tensor, Labelled)]
    on_cuda = asked is not None and torch.device(asked).type == "cuda"
    if not labelled and not on_cuda:
        return _on_cpu(func, args, kwargs)
    plain = [tensor for tensor in tensors if not isinstance(tensor, Labelled)]
    if func in _COPIES:
        return _copy(record, func, args, kwargs)
    _refuse_mixed(func, args, labelled, plain)
    if labelled:
        _note_waits(record, func, args, plain)
        record.launch(func, args)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    return _computed(func, args, kwargs, labelled)


def _computed(func: Any, args: Any, kwargs: Any, labelled: Sequence[Labelled]) -> Any:
    """Compute an operation on the held tensors.

    Results are labelled. For a tensor that was written in place the result is the same labelled object.
    """
    owners = {id(tensor.held): tensor for tensor in labelled}
    result = func(*_unwrapped(args), **_unwrapped(kwargs))
    if func._schema.is_mutable:
        for tensor in labelled:
            if tensor.shape != tensor.held.shape or tensor.stride() != tensor.held.stride():
                _follow(tensor, func)
    return _wrapped(result, owners)


def _follow(tensor: Labelled, func: Any) -> None:
    """Copy shape and strides of the held tensor to its labelled tensor.

    This is necessary after an in-place operation that changes them.
    """
    held = tensor.held
    if tensor.untyped_storage().data_ptr() != held.untyped_storage().data_ptr():
        raise NotImplementedError(f"{func} gave a labelled tensor another storage")
    with torch._C._DisableTorchDispatch():
        aten.as_strided_.default(tensor, held.shape, held.stride(), held.storage_offset())


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation that involves only CPU tensors. A page-locked result is plain memory that is recorded."""
    if not kwargs.get("pin_memory"):
        return func(*args, **kwargs)
    return _pinned.add(func(*args, **kwargs | {"pin_memory": False}))


def _copy(record: Record, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Copy tensors within a device or between devices.

    Between devices the host waits, unless the copy is non-blocking and the memory on the CPU is page-locked.
    """
    # Phase: `to` creates a new tensor. Without a wait its memory on the host is page-locked, as on CUDA.
    if func is aten._to_copy.default:
        source = args[0]
        asked = kwargs.get("device")
        there = not Labelled._leaving if isinstance(source, Labelled) else torch.device(asked).type == "cuda"
        if there and isinstance(source, Labelled):
            record.launch(func, args)
        elif not kwargs.get("non_blocking") or (there and source not in _pinned):
            record.wait("copy to the device" if there else "copy to the host")
        held = func(*_unwrapped(args), **kwargs | {"device": torch.device("cpu")})
        if not there and kwargs.get("non_blocking"):
            _pinned.add(held)
        return Labelled(held) if there else held
    # Phase: `copy_` and its foreach version write into existing tensors
    pairs = [args[:2]] if func is aten.copy_.default else list(zip(args[0], args[1], strict=True))
    non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    for target, source in pairs:
        if isinstance(target, Labelled) != isinstance(source, Labelled):
            host = source if isinstance(target, Labelled) else target
            if not non_blocking or host not in _pinned:
                record.wait("copy to the device" if isinstance(target, Labelled) else "copy to the host")
    if all(isinstance(tensor, Labelled) for pair in pairs for tensor in pair):
        record.launch(func, args)
    func(*_unwrapped(args), **kwargs)
    return args[0] if func._schema.returns else None


def _refuse_mixed(func: Any, args: Sequence[Any], labelled: Sequence[Labelled], plain: Sequence[torch.Tensor]) -> None:
    if not labelled:
        return
    if func in _INDEXING and isinstance(args[0], Labelled):
        # indices may be on the CPU, but values to write may not, unless they are scalars
        plain = [value for value in args[2:3] if isinstance(value, torch.Tensor) and not isinstance(value, Labelled)]
    elif func in _INDEXING and any(isinstance(index, Labelled) for index in args[1]):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    written = [
        tensor
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(value)
    ]
    onto_cpu = any(not isinstance(tensor, Labelled) for tensor in written)
    if onto_cpu or any(tensor.dim() > 0 for tensor in plain):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {func._schema.name})"
        )


def _note_waits(record: Record, func: Any, args: Sequence[Any], plain: Sequence[torch.Tensor]) -> None:
    name = func._schema.name.partition("::")[2]
    if func in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        fills = func is not aten.index.Tensor and args[2].numel() == 1 and args[2].device.type == "cpu"
        if any(not isinstance(index, Labelled) for index in indices):
            record.wait("index on the CPU")
        elif any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not fills:
            record.wait("boolean index")
    elif func in _READS or any(tag in func.tags for tag in _SHAPED_BY_VALUES):
        record.wait({"_local_scalar_dense": "item"}.get(name, name))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Labelled):
        return value.held
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item) for item in value]
    if isinstance(value, dict):
        return {name: _unwrapped(item) for name, item in value.items()}
    return value


def _wrapped(value: Any, owners: dict[int, Labelled]) -> Any:
    if isinstance(value, torch.Tensor):
        return owners.get(id(value)) if id(value) in owners else Labelled(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_wrapped(item, owners) for item in value)
    return value


class _Stream:
    """A stream or event on which all work has already finished.

    `synchronize` still counts as a wait.
    """

    device, cuda_stream, stream_id = DEVICE, 0, 0

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    wait_event = wait = record = wait_stream

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0

    def synchronize(self) -> None:
        Labelled._record.wait("synchronize")


def _factory(make: Any) -> Any:
    """Wrap torch.tensor or torch.as_tensor: create the tensor on the CPU, then copy it, as torch does."""

    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> Any:
        if isinstance(data, Labelled):
            return data.to(device or DEVICE, options.get("dtype") or data.dtype)
        here = make(data, *args, **options)
        return here if device is None else here.to(device)

    return made


def _same_kind(compatible: Any) -> Any:
    """Make `Module.to` create a new parameter for a labelled tensor.

    A plain parameter cannot become labelled in place.
    """

    def same_kind(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a is b if isinstance(a, Labelled) or isinstance(b, Labelled) else compatible(a, b)

    return same_kind


def _by_device(group: Any) -> Any:
    """Make torch group gradients by their labelled device.

    torch would group them by the device that C++ sees, the CPU.
    """

    def grouped(tensors: Any, *args: Any) -> Any:
        return {
            (DEVICE if isinstance(lists[0][0], Labelled) else device, dtype): (lists, places)
            for (device, dtype), (lists, places) in group(tensors, *args).items()
        }

    return grouped


def _autocast(init: Any) -> Any:
    def initialise(self: Any, device_type: str, *args: Any, **options: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **options)

    return initialise


def _patches(record: Record) -> Iterator[Any]:
    """Yield the patches that make torch report a CUDA device."""
    # Phase: functions and classes of torch.cuda
    nothing = lambda *args, **options: None  # noqa: E731
    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *args, **options: True,
        "get_device_name": lambda *args: "simulated CUDA device",
        "get_device_capability": lambda *args: (9, 0),
        "get_device_properties": lambda *args: SimpleNamespace(name="simulated CUDA device", major=9, minor=0),
        "device": lambda *args: nullcontext(),
        "synchronize": lambda *args: record.wait("synchronize"),
        "set_sync_debug_mode": lambda mode: setattr(record, "refuses", mode in (2, "error")),
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda *args: _Stream(),
        "default_stream": lambda *args: _Stream(),
        "Stream": _Stream,
        "Event": _Stream,
    }
    cuda |= dict.fromkeys(("_lazy_init", "set_device", "set_stream", "manual_seed", "manual_seed_all"), nothing)
    cuda |= dict.fromkeys(("empty_cache", "reset_peak_memory_stats"), nothing)
    yield from (patch.object(torch.cuda, name, value) for name, value in cuda.items())
    # Phase: functions outside torch.cuda that depend on the device
    yield from (patch.object(torch, name, _factory(getattr(torch, name))) for name in ("tensor", "as_tensor"))
    same_kind = _same_kind(torch._has_compatible_shallow_copy_type)
    yield patch.object(torch, "_has_compatible_shallow_copy_type", same_kind)
    grouped = _by_device(torch._C._group_tensors_by_device_and_dtype)
    yield patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    yield patch.object(torch.autocast, "__init__", _autocast(torch.autocast.__init__))
    yield patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: _pinned.pin(tensor))
    yield patch.object(torch.Tensor, "is_pinned", lambda tensor, *args: tensor in _pinned)
    yield patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None)


@contextmanager
def simulated_cuda() -> Iterator[Record]:
    """Simulate a CUDA device in this process during a `with` block.

    Everything is restored afterwards. Caches keyed by device, and Accelerate's global state, are cleared at the
    beginning and at the end.

    Yields:
        The record of waits and kernels.
    """
    record = Record()
    # this one change is permanent: without a driver, C++ device guards for "cuda" then have no effect
    torch._C._ensureCUDADeviceGuardSet()
    _forget()
    with ExitStack() as stack:
        for change in _patches(record):
            stack.enter_context(change)
        stack.enter_context(patch.object(Labelled, "_record", record, create=True))
        stack.callback(_forget)
        stack.enter_context(_Dispatcher(record))
        yield record


def _forget() -> None:
    _pinned._storages.clear()
    for cached in (_constants, _places, _tables):
        cached.cache_clear()
    if (state := sys.modules.get("accelerate.state")) is not None:
        for singleton in (state.AcceleratorState, state.GradientState, state.PartialState):
            singleton._reset_state()
