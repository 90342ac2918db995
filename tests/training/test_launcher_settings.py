"""Test the treatment of every environment variable of Accelerate.

Those that change bits are refused, must agree, or are recorded.
"""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path

import accelerate
import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from harness.common.launched import NUMBERS, check_address, check_launcher_numbers, launcher_number
from harness.distributed.launcher_settings import REFUSED, check_launcher_precision, check_launcher_settings
from harness.distributed.world import World
from tests.training.small_training import open_world

# The treatment of each variable. The first test fails if a later Accelerate reads further variables.
CHANGES_BITS = {
    "ACCELERATE_USE_FSDP": ("refused", "true"),
    "ACCELERATE_USE_DEEPSPEED": ("refused", "true"),
    "ACCELERATE_USE_MEGATRON_LM": ("refused", "true"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("refused", "true"),
    "ACCELERATE_USE_SAGEMAKER": ("refused", "true"),
    "ACCELERATE_DYNAMO_BACKEND": ("refused", "inductor"),
    "ACCELERATE_FP8_BACKEND": ("refused", "TE"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("refused", "4"),
    "ACCELERATE_GRADIENT_CLIPPING": ("refused", "1.0"),
    "ACCELERATE_DOWNCAST_BF16": ("refused", "true"),
    "ACCELERATE_MIXED_PRECISION": ("agrees with the recipe's", "bf16"),
    "ACCELERATE_TORCH_DEVICE": ("recorded; others than cpu and cuda are refused", "mps"),
    "ACCELERATE_USE_CPU": ("recorded as the device", "true"),
}
ONLY_WITH_A_REFUSED_ONE = {
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_DYNAMO_",
    "ACCELERATE_DYNAMO_MODE",
    "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "ACCELERATE_FP8_",
    "ACCELERATE_FP8_OPT_LEVEL",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_IN_TPU_POD",
}
CHANGES_NO_BITS = {
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_DEBUG_RDV_FILE",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_INIT_INCLUDE_BUFFERS",  # read only by `init_empty_weights`, which the harness does not use
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_NUM_PROCESSES",  # read only by the notebook launcher
}


def variables() -> set[str]:
    """Return all names ACCELERATE_… in the source of the installed package."""
    sources = Path(accelerate.__file__).parent.rglob("*.py")
    found = {name for path in sources for name in re.findall(r"ACCELERATE_[A-Z0-9_]+", path.read_text())}
    return {name for name in found if not name.startswith("ACCELERATE_DEEPSPEED_")}  # read only by the DeepSpeed plugin


def test_the_table_has_every_variable_of_accelerate():
    assert variables() == {*CHANGES_BITS, *ONLY_WITH_A_REFUSED_ONE, *CHANGES_NO_BITS}
    assert {name for name, (what, _) in CHANGES_BITS.items() if what == "refused"} == REFUSED.keys()


@pytest.mark.parametrize("variable", CHANGES_BITS)
def test_settings_that_change_bits_are_refused_or_recorded(monkeypatch, variable):
    what, value = CHANGES_BITS[variable]
    monkeypatch.setenv(variable, value)
    if what.startswith("recorded as"):
        for world in open_world("no"):
            assert world.device.type == "cpu" and world.device_name.startswith("cpu ")
        return
    with pytest.raises(ValueError, match=rf"{variable}|the launcher asks for bf16"):
        World("no")


@pytest.mark.parametrize("variable", REFUSED)
@pytest.mark.parametrize("value", ["", "no", "NO", "false", "False", "0"])
def test_a_disabled_setting_is_accepted(variable, value):
    check_launcher_settings({variable: value})


@pytest.mark.parametrize("device", ["mps", "CPU", "cuda:abc", "cuda:", "cuda:-1", "cuda:9999"])
def test_a_device_that_is_unknown_or_missing_is_refused(device):
    with pytest.raises(ValueError, match=rf"device {device} .*ACCELERATE_TORCH_DEVICE"):
        check_launcher_settings({"ACCELERATE_TORCH_DEVICE": device})


SHARED = {"TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def test_restarts_on_several_nodes_with_a_shared_store_are_refused():
    with pytest.raises(ValueError, match=r"--max-restarts 3.* TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun"):
        check_launcher_settings(SHARED)
    for harmless in (("MAX_RESTARTS", "0"), ("USE_AGENT_STORE", "False")):
        check_launcher_settings(SHARED | {f"TORCHELASTIC_{harmless[0]}": harmless[1]})
    check_launcher_settings(SHARED | {"GROUP_WORLD_SIZE": "1"})


def test_the_launchers_precision_must_equal_the_recipes(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for world in open_world("bf16"):
        assert world.precision == "bf16"
    with pytest.raises(ValueError, match="the launcher asks for bf16, the run for 'no'"):
        World("auto")  # becomes "no" on a CPU


@pytest.mark.parametrize(
    ("asked", "mend"),
    [
        ("fp8", "remove it from the launcher"),
        ("BF16", "give the recipe --precision bf16"),
        ("fp16", "give the recipe --precision fp16"),
        ("no", None),
        ("NO", None),
        ("", None),
    ],
)
def test_another_precision_of_the_launcher_is_refused_with_advice(asked, mend):
    refused = pytest.raises(ValueError, match=f"the launcher asks for {asked.lower()}, the run for 'no': {mend}")
    with nullcontext() if mend is None else refused:
        check_launcher_precision("no", {"ACCELERATE_MIXED_PRECISION": asked})


CONFIGURED = {
    "dynamo_config: {dynamo_backend: INDUCTOR}": "a compiled network would get",
    "dynamo_config: {dynamo_backend: EAGER, dynamo_mode: default}": "a compiled network would get",
    "mixed_precision: fp8\nfp8_config: {backend: TE}": "the launcher asks for fp8|fp8 is not supported",
    "mixed_precision: fp16": "the launcher asks for fp16",
    "mixed_precision: bf16": "the launcher asks for bf16",
    "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}": "FSDP is not supported",
    "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 4}": "DeepSpeed",
    "distributed_type: MEGATRON_LM\nmegatron_lm_config: {megatron_lm_tp_degree: 2}": "Megatron-LM is not supported",
}


@pytest.mark.parametrize("text", CONFIGURED)
def test_unsupported_configuration_files_are_refused(tmp_path, monkeypatch, text):
    """Apply the environment that `accelerate launch` makes from a user's default_config.yaml."""
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    environment = environment_of(tmp_path, text)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=CONFIGURED[text]):
        World("no")


def test_a_usual_configuration_file_is_accepted(tmp_path):
    check_launcher_settings(environment_of(tmp_path, "mixed_precision: 'no'\ndynamo_config: {dynamo_backend: 'NO'}"))


def environment_of(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "default_config.yaml"
    usual = {"distributed_type": "'NO'", "mixed_precision": "'no'", "num_processes": "1", "use_cpu": "false"}
    lines = [f"{name}: {value}" for name, value in usual.items() if not re.search(rf"^{name}:", text, re.M)]
    file.write_text("\n".join(["compute_environment: LOCAL_MACHINE", *lines, text]) + "\n")
    args = launch.launch_command_parser().parse_args(["--config_file", str(file), "recipe.py"])
    args, _, _ = launch._validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # normally set by the launch command, which does not run here
        return prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.use_megatron_lm:
        return launch.prepare_multi_gpu_env(args)
    return launch.prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": " ", "MASTER_PORT": ""}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({"PMI_SIZE": "", "OMPI_COMM_WORLD_RANK": " ", "MPI_LOCALRANKID": ""}, None),
        ({"PMI_SIZE": "abc"}, "PMI_SIZE is 'abc'; it must be a whole number from 1"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set: start with .*`unset RANK`"),
        ({"RANK": "3", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "3"}, "RANK is 3, but WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, but MASTER_ADDR and WORLD_SIZE are not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": ""}, "asked for 2 processes, but MASTER_ADDR .* `unset WORLD_SIZE`"),
        ({"PMI_SIZE": "3"}, "asked for 3 processes, but MASTER_ADDR is not set.*`unset PMI_SIZE`"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'; it must be a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE is '1.5'"),
        ({"RANK": "-1"}, "RANK is '-1'; it must be a whole number from 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2: ranks start at 0"),
        ({"LOCAL_RANK": "zero"}, "LOCAL_RANK is 'zero'"),
        ({"LOCAL_WORLD_SIZE": "٣"}, "LOCAL_WORLD_SIZE is"),
        ({"GROUP_WORLD_SIZE": "1,2"}, "GROUP_WORLD_SIZE is '1,2'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999'; it must be a whole number from 0 to 65,535"),
    ],
)
def test_numbers_of_the_launcher(monkeypatch, variables: dict[str, str], said: str | None):
    for name in (*NUMBERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if said is None else pytest.raises(ValueError, match=said):
        check_launcher_numbers()
        check_address()
    if said is None:  # Accelerate and torch read the variables themselves, and know no empty number
        assert all(os.environ.get(name, "0") for name in NUMBERS)
        assert launcher_number("RANK", 0) == 0 and launcher_number("WORLD_SIZE", 1) == 1
        assert "LOCAL_RANK" not in os.environ  # it would make Accelerate join a process group
