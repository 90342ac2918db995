"""A comparison of two checkpoints from files on the device, and the waits for the device in the real loop."""

from __future__ import annotations

import collections
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from harness.analysis.barrier import ALPHAS, barrier_curve
from harness.checkpoint import Checkpoint
from harness.distributed.world import World
from harness.models import build_model
from tools.benchmarks.device.feeds import augmented
from tools.benchmarks.device.parts import Finding
from tools.benchmarks.device.ways import BatchesOf, Case, Network, our_way

OWN = tuple(f"{Path(__file__).resolve().parents[3] / folder}/" for folder in ("harness", "tools", "tests"))
"""Folders of this repository's own code."""
STEPS, SKIPPED = 40, 5
"""Steps that are watched, and steps before them."""
MEETING = "hold"
"""The loop's function in which all ranks agree: it has to wait, but only every second or 50 steps."""


def checkpoints(world: World) -> Iterator[Finding]:
    """Compare two checkpoints that were written to files; the same on the CPU must find the same errors."""
    on_gpu = world.device.type == "cuda"
    name, size, batch_size = ("resnet20", 32, 128) if on_gpu else ("resnet8", 16, 16)
    alphas = ALPHAS if on_gpu else (0.0, 0.5, 1.0)
    torch.manual_seed(0)
    images_BNCHW, labels_BN = torch.randn(4, batch_size, 3, size, size), torch.randint(10, (4, batch_size))
    with TemporaryDirectory() as directory:
        paths = [Path(directory) / f"{letter}.safetensors" for letter in "ab"]
        for path in paths:
            _save(build_model(name, num_classes=10, channels=3, image_size=size), path)
        states = [Checkpoint.load(path).state_dict for path in paths]
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # the CPU has no TF32
    try:
        errors = []
        for device in (world.device, torch.device("cpu")):
            model = build_model(name, num_classes=10, channels=3, image_size=size).to(device)
            batches = [(x.to(device), y.to(device)) for x, y in zip(images_BNCHW, labels_BN, strict=True)]
            bn_batches = [images_NCHW for images_NCHW, _ in batches]
            curve = barrier_curve(model, *states, bn_batches=bn_batches, test_batches=batches, alphas=alphas)
            errors.append(curve.error_percent)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    apart = max(abs(there - here) for there, here in zip(*errors, strict=True)) / 100 * labels_BN.numel()
    text = f"{len(alphas)} α of {name}, {labels_BN.numel()} images; at most {apart:.0f} apart from the CPU"
    yield Finding(text, {"images apart from the CPU": round(apart)})


def _save(model: nn.Module, path: Path) -> None:
    Checkpoint.of(model, level=0, epochs=1, level_digest="0" * 64).save(path)


def waits(world: World) -> Iterator[Finding]:
    """Count the waits in 40 steps of aws through the feed, by file and line."""
    on_gpu = world.device.type == "cuda"
    case = Case("resnet20" if on_gpu else "resnet8", 128 if on_gpu else 4, 32 if on_gpu else 16, 10, STEPS, 1)
    network, watch = Network(case, world.device), Watch()
    batches = augmented(case, world.device, num_images=50_000 if on_gpu else 64)
    run = our_way(network, network.model(), world, "aws", watch.during(batches))
    watch.steps = range(0)
    run(SKIPPED)
    watch.steps = range(SKIPPED, SKIPPED + STEPS)
    run(SKIPPED + STEPS)
    places = ", ".join(f"{number} × {place}" for place, number in watch.seen.most_common(8))
    number = sum(watch.seen.values())
    if not on_gpu:
        yield Finding(f"{STEPS} steps of {case.model} on a CPU, where there is nothing to wait for")
        return
    text = f"{number} waits in {STEPS} steps{': ' if places else ''}{places}, and {watch.in_meetings} in meetings"
    yield Finding(text, {"waits": number, "waits in meetings": watch.in_meetings})


class Watch:
    """Counts PyTorch's warnings of operations that wait for the device, where the harness or a tool asks for them."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self.in_meetings = 0
        self.steps = range(0)

    def during(self, batches: BatchesOf) -> BatchesOf:
        """Return the same batches; the watch goes on and off as the loop asks for those of `steps`."""

        def watched(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            stream = batches(number)
            yield from self._unwatched(stream, self.steps.start)
            with self.watching():
                yield from self._unwatched(stream, len(self.steps))
            yield from stream

        return watched

    @staticmethod
    def _unwatched(stream: Iterator[tuple[Tensor, Tensor]], number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _, batch in zip(range(number), stream, strict=False):
            yield batch

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count until the end of the block."""
        on_gpu = torch.cuda.is_available()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._note
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if on_gpu:
                    torch.cuda.set_sync_debug_mode("default")

    def _note(self, message: Warning | str, *where: object, **more: object) -> None:
        if "synchronizing" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OWN)]
        frames = [frame for frame in frames if frame.filename != __file__]
        if any(frame.name == MEETING for frame in frames):
            self.in_meetings += 1
        else:
            nearest = frames[-1] if frames else traceback.extract_stack()[-2]
            self.seen[f"{Path(nearest.filename).name}:{nearest.lineno}"] += 1
