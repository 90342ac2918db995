"""Settings that come by environment from Accelerate's launcher or its configuration file, and not from a recipe.

A run's key and record hold the recipe's settings. A launcher could change bits behind their back; so each of its
settings that does is refused here, unless it says the same as the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_OFF = frozenset({"", "0", "false", "f", "no", "n", "off", "none"})


@dataclass(frozen=True)
class _Refusal:
    """Why a setting is refused, and how to do without it."""

    name: str
    mend: str
    harmless: frozenset[str] = _OFF
    """Values, in small letters, that change nothing."""


_WHOLE = "masks need whole parameters on every rank; launch with DDP (recipes/launch/)"
_COMPILED = (
    "it would compile the network under the key of one that is not compiled; launch with --dynamo_backend no, and take "
    "dynamo_config out of Accelerate's configuration file"
)
REFUSED: Mapping[str, _Refusal] = {
    "ACCELERATE_USE_FSDP": _Refusal("FSDP", _WHOLE),
    "ACCELERATE_USE_DEEPSPEED": _Refusal("DeepSpeed", _WHOLE),
    "ACCELERATE_USE_MEGATRON_LM": _Refusal("Megatron-LM", _WHOLE),
    "ACCELERATE_USE_PARALLELISM_CONFIG": _Refusal("Accelerate's parallelism configuration", _WHOLE),
    "ACCELERATE_USE_SAGEMAKER": _Refusal(
        "SageMaker", "its own distribution of data has not been tried; launch with DDP"
    ),
    "ACCELERATE_DYNAMO_BACKEND": _Refusal("Dynamo", _COMPILED),
    "ACCELERATE_FP8_BACKEND": _Refusal("fp8", "say --precision bf16, fp16 or no, and take fp8 out of the launcher"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Refusal(
        "gradient accumulation by the launcher",
        "set accumulation with --accumulation-steps",
        _OFF | {"1"},
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Refusal(
        "gradient clipping by the launcher", "set it with --optim.max-grad-norm", _OFF | {"auto"}
    ),
    "ACCELERATE_DOWNCAST_BF16": _Refusal("downcasting to bf16", "say --precision bf16"),
}
"""By variable. ACCELERATE_MIXED_PRECISION is compared with the recipe's precision; devices are recorded."""


def check_launcher_settings(environment: Mapping[str, str]) -> None:
    """Raise ValueError naming the first setting of a launcher that would change bits unrecorded."""
    for variable, refusal in REFUSED.items():
        value = environment.get(variable, "")
        if value.strip().lower() not in refusal.harmless:
            raise ValueError(f"{refusal.name} is not supported ({variable}={value}): {refusal.mend}")
    asked = environment.get("ACCELERATE_TORCH_DEVICE", "")
    if asked and asked.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device {asked} is not supported (ACCELERATE_TORCH_DEVICE): only cpu and cuda are")


def check_launcher_precision(precision: str, environment: Mapping[str, str]) -> None:
    """Raise ValueError if the launcher asks for another mixed precision than the run has."""
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    if asked in _OFF or asked == precision:
        return
    mend = f"say --precision {asked} to the recipe" if asked in ("bf16", "fp16") else "take it out of the launcher"
    raise ValueError(f"the launcher asks for {asked}, the run for {precision!r}: {mend}")
