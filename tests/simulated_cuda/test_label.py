"""Test simulated CUDA itself: refused operations, counted waits and kernels, and complete restoration."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.simulated_cuda import label
from tests.simulated_cuda.label import DEVICE, Labelled, listing, simulated_cuda

HERE = "tests/simulated_cuda/test_label.py"
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same values on the simulated device and on the CPU."""
    here = torch.arange(-4.0, 8.0).view(3, 4)
    return here.to(DEVICE), here


def test_a_labelled_tensor_reports_cuda_and_has_cpu_values(cuda):
    there, here = pair()
    assert there.device == DEVICE and there.is_cuda and there.get_device() == 0
    for result in (there @ there.T, there.to(torch.bfloat16), there[1], there.sum(), torch.zeros_like(there)):
        assert isinstance(result, Labelled)
    assert torch.equal((there @ there.T).cpu(), here @ here.T)
    assert type(there.cpu()) is torch.Tensor and there.cpu().device.type == "cpu"
    for made in (torch.zeros(2, device="cuda"), torch.tensor([1.0], device="cuda:0"), torch.arange(3, device=DEVICE)):
        assert isinstance(made, Labelled)


def test_a_network_trains_as_on_the_cpu(cuda):
    found = []
    for device in (DEVICE, torch.device("cpu")):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).to(
            device
        )
        images = torch.randn(4, 3, 8, 8).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            nn.functional.cross_entropy(model(images), torch.arange(4).to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(param.device == device for param in model.parameters())
        found.append({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_in_place_shape_changes_match_the_cpu(cuda):
    there, here = pair()
    for tensor in (there, here):
        tensor.t_().unsqueeze_(0).as_strided_((2, 3), (1, 2))
    assert there.shape == here.shape and there.stride() == here.stride()
    assert torch.equal((there + 1).cpu(), here + 1)


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: here.add_(there),
        lambda there, here: there.mul_(here),
        lambda there, here: here @ there.T,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: torch.lerp(here, here, 0.5, out=there),
        lambda there, here: torch.zeros(()).add_(there.sum()),
        lambda there, here: there.index_select(0, torch.tensor([0])),
        lambda there, here: torch._foreach_mul_([there], [here]),
        lambda there, here: nn.functional.linear(there, here),
        lambda there, here: torch.equal(there, here),
    ],
)
def test_mixed_devices_are_refused_with_torchs_message(mix, cuda):
    with pytest.raises(RuntimeError, match=re.escape(MIXED)):
        mix(*pair())


def test_other_refusals_have_torchs_messages(cuda):
    there, here = pair()
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device as the indexed"):
        here[there[0].long().abs() % 3]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        __import__("numpy").asarray(there)
    with pytest.raises(RuntimeError, match="cannot pin"):
        there.pin_memory()
    assert float((there * torch.tensor(2.0)).sum()) == 2 * float(here.sum()), "a CPU scalar is accepted"


WAITS = {
    "item": lambda there, here: there.sum().item(),
    "float": lambda there, here: float(there.sum()),
    "int": lambda there, here: int(there.sum()),
    "bool": lambda there, here: bool((there > 0).any()),
    "if": lambda there, here: 1 if there.sum() > 0 else 2,
    "tolist": lambda there, here: there.tolist(),
    "cpu": lambda there, here: there.cpu(),
    "to the host": lambda there, here: there.to("cpu", torch.float64),
    "to the host, into pageable memory": lambda there, here: here.copy_(there, non_blocking=True),
    "to the device": lambda there, here: here.to("cuda"),
    "to the device, from pageable memory": lambda there, here: here.to("cuda", non_blocking=True),
    "to the device, pinned but blocking": lambda there, here: here.pin_memory().to("cuda"),
    "copy_": lambda there, here: there.copy_(here),
    "tensor": lambda there, here: torch.tensor([1.0, 2.0], device="cuda"),
    "as_tensor": lambda there, here: torch.as_tensor([1.0, 2.0], device="cuda"),
    "number into an element": lambda there, here: there.__setitem__((0, 0), 1.0),
    "nonzero": lambda there, here: there.nonzero(),
    "where": lambda there, here: torch.where(there > 0),
    "masked_select": lambda there, here: there.masked_select(there > 0),
    "unique": lambda there, here: there.unique(),
    "boolean index": lambda there, here: there[there > 0],
    "boolean index written to": lambda there, here: there.__setitem__(there > 0, there[there > 0]),
    "index on the cpu": lambda there, here: there[torch.tensor([0, 2])],
    "equal": lambda there, here: torch.equal(there, there),
    "allclose": lambda there, here: torch.allclose(there, there),
    "synchronize": lambda there, here: torch.cuda.synchronize(),
    "event": lambda there, here: torch.cuda.Event().synchronize(),
    "repr": lambda there, here: repr(there),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted_and_names_its_line(name, cuda):
    there, here = pair()
    cuda.clear()
    WAITS[name](there, here)
    line = WAITS[name].__code__.co_firstlineno
    assert cuda.waits, "no wait was counted"
    for wait in cuda.waits:
        assert wait.place.startswith(f"{HERE}:{line}: "), listing(cuda.waits)
        assert "lambda there, here" in wait.place
    assert len(cuda.waits) == (2 if name == "boolean index written to" else 1)


@pytest.mark.parametrize(
    "work",
    [
        lambda there, here: here.pin_memory().to("cuda", non_blocking=True),
        lambda there, here: here.pin_memory()[1:].to("cuda", non_blocking=True),
        lambda there, here: there.copy_(here.pin_memory(), non_blocking=True),
        lambda there, here: there.to("cpu", non_blocking=True),
        lambda there, here: torch.empty(3, 4, pin_memory=True).copy_(there, non_blocking=True),
        lambda there, here: there.to(torch.float64),
        lambda there, here: there[1:, torch.arange(2, device="cuda")],
        lambda there, here: there.__setitem__(there > 0, 0.0),
        lambda there, here: there.__setitem__(slice(1), 0.0),
        lambda there, here: torch.full((), 3.0, device="cuda"),
        lambda there, here: there * 2 + torch.tensor(1.0),
        lambda there, here: nn.utils.clip_grad_norm_([_with_grad(there)], 1.0),
        lambda there, here: torch.cuda.current_stream().wait_stream(torch.cuda.Stream()),
        lambda there, here: there.record_stream(torch.cuda.current_stream()),
        lambda there, here: (here.sum().item(), here.nonzero(), here.tolist()),
    ],
)
def test_non_blocking_operations_count_no_wait(work, cuda):
    there, here = pair()
    cuda.clear()
    work(there, here)
    assert not cuda.waits, listing(cuda.waits)


def _with_grad(tensor: torch.Tensor) -> torch.Tensor:
    param = nn.Parameter(tensor)
    param.grad = torch.ones_like(tensor)
    return param


def test_sync_debug_mode_raises_at_a_wait(cuda):
    there, _ = pair()
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation: item at tests/simulated_cuda/"):
        there.sum().item()
    torch.cuda.set_sync_debug_mode("default")
    assert there.sum().item() == 18


def test_a_wait_inside_a_library_names_the_librarys_line(cuda):
    scaler = torch.amp.GradScaler("cuda")
    param = _with_grad(pair()[0])
    optimizer = torch.optim.SGD([param], lr=0.1)
    scaler.scale(param.sum()).backward()
    cuda.clear()
    scaler.step(optimizer)
    assert re.search(
        rf"^item at {HERE}:\d+: scaler.step\(optimizer\) \(in amp/grad_scaler.py:\d+\)$", str(cuda.waits[0])
    )


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (lambda there: there + 1, {"add": 1}),
        (lambda there: there.view(4, 3).T[1:].detach(), {}),
        (lambda there: torch.empty_like(there), {}),
        (lambda there: torch._foreach_mul_([there, there.clone()], 2.0), {"clone": 1, "_foreach_mul_": 1}),
        (lambda there: torch._foreach_mul_([there] * 3, [there.clone()] * 3), {"clone": 1, "_foreach_mul_": 1}),
        (lambda there: torch._foreach_mul_([there[:3, :3]] * 3, [there[:3, :3].T] * 3), {"_foreach_mul_": 3}),
        (lambda there: there.sum().item(), {"sum": 1}),
    ],
)
def test_kernels_are_counted(work, kernels, cuda):
    there, _ = pair()
    cuda.clear()
    work(there)
    assert cuda.kernels == kernels


def state() -> dict[str, object]:
    """Return the identities of all attributes that the simulation may change."""
    classes = {"Tensor": vars(torch.Tensor), "autocast": vars(torch.autocast), "Labelled": vars(Labelled)}
    modules = {"torch": vars(torch), "cuda": vars(torch.cuda), "_C": vars(torch._C)}
    found = {f"{of}.{name}": id(value) for of, values in (classes | modules).items() for name, value in values.items()}
    mode = torch.utils._python_dispatch._get_current_dispatch_mode()
    return found | {"mode": mode, "available": torch.cuda.is_available()}


def test_everything_is_restored_even_after_an_error():
    from harness.data import DATASETS
    from harness.training.feed import normalize

    pair_on_cpu = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    before = state()
    with pytest.raises(ZeroDivisionError), simulated_cuda():
        assert torch.cuda.is_available() and state() != before
        normalize(pair_on_cpu.to("cuda"), DATASETS["digits"], True)
        assert label._constants.cache_info().currsize == 1
        pair_on_cpu.pin_memory()
        raise ZeroDivisionError
    after = state()
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()
    assert label._constants.cache_info().currsize == 0 and not label._pinned._storages
    assert type(normalize(pair_on_cpu, DATASETS["digits"], True)) is torch.Tensor


def test_accelerates_singletons_are_reset():
    state = pytest.importorskip("accelerate.state")
    with simulated_cuda():
        assert state.PartialState().device.type == "cuda"
    assert state.PartialState._shared_state == {}
    assert state.PartialState(cpu=not torch.cuda.is_available()).device.type == (
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    state.PartialState._reset_state()


def test_a_network_is_copied_with_its_layout(cuda):
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last).to(DEVICE)
    copy = deepcopy(model)
    assert [type(param) for param in copy.parameters()] == [Labelled] * 4
    for (name, own), (other, made) in zip(model.named_parameters(), copy.named_parameters(), strict=True):
        assert name == other and made is not own and made.requires_grad and isinstance(made, nn.Parameter)
        assert made.stride() == own.stride() and torch.equal(made.cpu(), own.cpu())
    assert copy.state_dict().keys() == model.state_dict().keys()
