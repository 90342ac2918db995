"""Check settings that reach the process through environment variables of Accelerate's launcher.

A run's key and record hold only the recipe's settings. A launcher's setting (or its configuration file) could change
the bits of a run without entering its key. So every such setting is rejected, unless it agrees with the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_OFF = frozenset({"", "0", "false", "f", "no", "n", "off", "none"})


@dataclass(frozen=True)
class _Refusal:
    """A rejected setting."""

    name: str
    mend: str
    """Advice for the user."""
    harmless: frozenset[str] = _OFF
    """Accepted values in lower case. They change nothing."""


_WHOLE = "masks need unsharded parameters on every rank; launch with DDP, as the files of recipes/launch do"
_COMPILED = (
    "a compiled network would get the key of an uncompiled one; launch with --dynamo_backend no, remove dynamo_config "
    "from Accelerate's configuration file, and give the recipe --compile"
)
REFUSED: Mapping[str, _Refusal] = {
    "ACCELERATE_USE_FSDP": _Refusal("FSDP", _WHOLE),
    "ACCELERATE_USE_DEEPSPEED": _Refusal("DeepSpeed", _WHOLE),
    "ACCELERATE_USE_MEGATRON_LM": _Refusal("Megatron-LM", _WHOLE),
    "ACCELERATE_USE_PARALLELISM_CONFIG": _Refusal("Accelerate's parallelism configuration", _WHOLE),
    "ACCELERATE_USE_SAGEMAKER": _Refusal("SageMaker", "its way of distributing data is untested; launch with DDP"),
    "ACCELERATE_DYNAMO_BACKEND": _Refusal("Dynamo", _COMPILED),
    "ACCELERATE_FP8_BACKEND": _Refusal("fp8", "use --precision bf16, fp16 or no, and remove fp8 from the launcher"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Refusal(
        "gradient accumulation by the launcher",
        "set accumulation with --accumulation-steps",
        _OFF | {"1"},
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Refusal(
        "gradient clipping by the launcher", "set it with --optim.max-grad-norm", _OFF | {"auto"}
    ),
    "ACCELERATE_DOWNCAST_BF16": _Refusal("downcasting to bf16", "use --precision bf16"),
}
"""Rejected settings by environment variable.

`check_launcher_precision` compares ACCELERATE_MIXED_PRECISION with the recipe. Devices are recorded with each run.
"""


def check_launcher_settings(environment: Mapping[str, str]) -> None:
    """Raise ValueError for the first launcher setting that would change bits without entering a run's key."""
    for variable, refusal in REFUSED.items():
        value = environment.get(variable, "")
        if value.strip().lower() not in refusal.harmless:
            raise ValueError(f"{refusal.name} is not supported ({variable}={value}): {refusal.mend}")
    nodes, restarts = environment.get("GROUP_WORLD_SIZE", "1"), environment.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if nodes != "1" and restarts != "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The nodes count their restarts apart, so no number known to all separates the keys of two starts.
        raise ValueError(
            f"restarts on several nodes (--max-restarts {restarts}) need a new key-value store for each start: launch "
            "with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --rdzv-backend c10d …, or with --max-restarts 0"
        )
    if asked := environment.get("ACCELERATE_TORCH_DEVICE", ""):
        _check_device(asked)


def _check_device(asked: str) -> None:
    """Raise ValueError for a device that is unknown, or that this machine lacks."""
    device = re.fullmatch(r"(cpu|cuda)(?::(\d{1,4}))?", asked)
    if device is None:
        raise ValueError(
            f"device {asked} is not supported (ACCELERATE_TORCH_DEVICE): only cpu and cuda are, also with a number as "
            "in cuda:0"
        )
    if device[1] == "cuda" and int(device[2] or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device {asked} does not exist (ACCELERATE_TORCH_DEVICE): torch finds {count} CUDA devices on this "
            "machine. Name another one, or unset the variable"
        )


def check_launcher_precision(precision: str, environment: Mapping[str, str]) -> None:
    """Raise ValueError if the launcher requests a mixed precision that differs from the run's."""
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    if asked in _OFF or asked == precision:
        return
    mend = f"give the recipe --precision {asked}" if asked in ("bf16", "fp16") else "remove it from the launcher"
    raise ValueError(f"the launcher asks for {asked}, the run for {precision!r}: {mend}")
