"""Test that killed or stopped launches resume to the same bytes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

from harness.lineage.store import open_store
from tests.recipes.launching import LAUNCH, LIGHT, REPOSITORY, TINY, elsewhere, nodes, recipe, run_ids, run_warm, tool
from tests.warm import Running, warm

pytestmark = pytest.mark.long


SLOW = pytest.mark.slow
SAVING = ["--checkpoint-every", "3", "--checkpoint-unit", "steps"]
WARM_UP = [
    *TINY,
    *LIGHT,
    "--offline",
    "--num-levels",
    "0",
    "--global-batch-size",
    "60",
]  # a batch of 60 divides among 1, 2, 3 and 4 processes


def files(where: Path) -> dict[str, str]:
    """Return the SHA-256 of each level's checkpoint and signed mask.

    The keys are run and file name.
    """
    names = ("checkpoint.safetensors", "signed_mask.safetensors")
    return {f"{run} {name}": record["files"][name] for run, record in nodes(where, "level").items() for name in names}


def assert_whole(where: Path) -> None:
    """Assert one finished MLflow run per local run.

    No unfinished run may remain on disk.
    """
    assert not list((where / "runs").glob(".making-*"))
    runs = open_store(where / "runs", f"sqlite:///{where / 'mlflow.db'}").summaries()
    assert {run.status for run in runs} == {"FINISHED"}
    assert len(runs) == len({run.key for run in runs}) == len(list((where / "runs").glob("*-*/record.json")))


# tools/crashtest.py kills at all other points
@pytest.mark.parametrize(
    ("point", "loader"), [("files-sent:2", LIGHT), pytest.param("before-finished:3", [], marks=SLOW)]
)
def test_a_search_killed_anywhere_ends_with_the_same_bytes(pristine, tmp_path, point, loader):
    where = elsewhere(pristine[0], tmp_path)
    command = ["aws_digits.py", *TINY, *loader, *SAVING]
    recipe(where, *command, ok=False, HARNESS_KILL_AT=point)
    assert json.loads((where / "runs" / "status.json").read_text())["status"] == "running"
    assert len(run_ids(recipe(where, *command))) == 3
    assert files(where) == files(pristine[0])
    assert_whole(where)


# 37 MB of gradients fill several buckets. The order of sums matters only with several buckets and three or more
# processes.
WIDE = ["--model.name", "vgg11_bn_cifar", "--model.width", "None", "--warmup-epochs", "1", "--global-batch-size", "360"]


@pytest.mark.parametrize(
    ("processes", "network", "every", "step"),
    [(2, [], 3, 29), pytest.param(3, WIDE, 1, 2, marks=SLOW), pytest.param(4, [], 3, 29, marks=SLOW)],
)
def test_a_killed_launch_of_several_processes_ends_with_the_same_bytes(
    prepared, tmp_path, processes, network, every, step
):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for where in (undisturbed, killed):
        where.mkdir()
        elsewhere(prepared, where)
    options = ["aws_digits.py", *WARM_UP, *network]
    recipe(undisturbed, *options, processes=processes)
    saving = [*SAVING, "--checkpoint-every", str(every)]
    recipe(killed, *options, *saving, processes=processes, ok=False, HARNESS_KILL_AT=f"step:{step}")
    (making,) = (killed / "runs").glob(".making-level-*")
    assert list(making.glob("state-*"))
    recipe(killed, *options, *saving, processes=processes)
    assert files(killed) == files(undisturbed) != {}
    assert not list((killed / "runs").glob(".making-*"))


@SLOW
def test_a_killed_final_training_resumes_to_the_same_bytes(pristine, tmp_path):
    # Phase: train the same ticket twice, once with a kill and a restart
    where, _ = pristine
    ticket = next(record["key"] for record in nodes(where, "level").values() if record["tags"]["level"] == "02")
    options = [
        "--ticket",
        ticket,
        "--kind",
        "mask",
        "--init-seed",
        "5",
        "--epochs",
        "3",
        "--loader",
        "memory",
        "--offline",
    ]
    digests = []
    for fault in (None, {"HARNESS_KILL_AT": "step:40"}):
        other = elsewhere(where, tmp_path / str(fault is None))
        shutil.copytree(where / "runs", other / "runs")
        if fault:
            recipe(other, "train_ticket.py", *options, ok=False, **fault)
        recipe(other, "train_ticket.py", *options)
        (trained,) = (record for name, record in nodes(other, "training").items() if "i5" in name)
        digests.append(trained["files"]["checkpoint.safetensors"])
    # Phase: compare the checkpoints
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("processes", "number"),
    [
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),  # mostly covered by the other cases
        (1, signal.SIGUSR1),
        (1, signal.SIGKILL),
        (2, signal.SIGTERM),
    ],
)
def test_a_launch_told_to_stop_saves_its_state_and_resumes(prepared, tmp_path, processes, number):
    """Signal the launcher, as Slurm does.

    The workers must notice, save and stop. After SIGKILL of the launcher no signal reaches the worker, which detects
    that its parent is gone.
    """
    # Phase: start a long training and wait for its first saved state
    where = elsewhere(prepared, tmp_path)
    long = [*WARM_UP, "--warmup-epochs", "1000"]
    shape = ["--num_processes", str(processes)] + (["--multi_gpu", "--main_process_port", "0"] if processes > 1 else [])
    command = [*LAUNCH, *shape, str(REPOSITORY / "recipes" / "aws_digits.py"), *long, *SAVING]
    launcher: subprocess.Popen[bytes] | Running
    if processes > 1:  # a cold launch, as a user does
        with open(where / "log", "w") as log:
            launcher = subprocess.Popen(command, cwd=where, stdout=log, stderr=log)
    else:
        launcher = Running(where, *command, log=where / "log")
    wait_until(lambda: list((where / "runs").glob(".making-level-*/state-*")), 200)
    # Phase: send the signal; the run is saved and reported as preempted
    launcher.send_signal(number)
    launcher.wait(120)
    status = where / "runs" / "status.json"
    wait_until(lambda: json.loads(status.read_text())["status"] != "running", 60)
    assert json.loads(status.read_text())["status"] == "preempted"
    (making,) = (where / "runs").glob(".making-level-*")
    wait_until(lambda: not (making / "owner.json").exists(), 30)  # the worker has released the run
    why = "the launcher is gone" if number == signal.SIGKILL else ""
    assert f"stopped: {why}" in (where / "log").read_text()
    # Phase: the same command resumes; kill it again, because 1000 epochs take too long
    (before,) = making.glob("state-*")
    processes_again = processes if processes > 1 else 0
    said = recipe(where, "aws_digits.py", *long, *SAVING, processes=processes_again, ok=False, HARNESS_KILL_AT="step:9")
    assert re.search(rf"; {processes} CPU process(es)? \(\w+\), 1 thread( each)?; runs in runs/$", said, re.M)
    assert "resumes at epoch" in said and next(making.glob("state-*")).name > before.name


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=SLOW)])
def test_ctrl_c_and_a_closed_terminal_save_and_end_with_the_same_bytes_after_resuming(pristine, tmp_path, number):
    where = elsewhere(pristine[0], tmp_path)
    command = [str(REPOSITORY / "recipes" / "aws_digits.py"), *TINY, *LIGHT, *SAVING, "--offline"]
    launch = Running(where, *command, log=where / "log")
    wait_until(lambda: list((where / "runs").glob(".making-level-*/state-*")), 200)
    launch.send_signal(number)
    assert launch.wait(120) == 75
    said = (where / "log").read_text()
    assert said.count("stopped: got ") == 1 and signal.Signals(number).name in said and "Traceback" not in said
    assert json.loads((where / "runs" / "status.json").read_text())["status"] == "preempted"
    said = run_warm(where, *command)
    assert files(where) == files(pristine[0])


def test_a_second_launch_of_the_same_search_is_refused_and_names_the_first(prepared, tmp_path):
    where = elsewhere(prepared, tmp_path)
    recipe(where, "aws_digits.py", *WARM_UP, ok=False, HARNESS_KILL_AT="step:9")
    (making,) = (where / "runs").glob(".making-level-*")
    with FileLock(making / "lock"):
        said = recipe(where, "aws_digits.py", *WARM_UP, ok=False)
    assert "is already being made by process" in said and "Traceback" not in said


def test_data_preparation_restarts_after_a_kill(tmp_path):
    prepare = [str(REPOSITORY / "tools" / "prepare_data.py"), "digits", "--out", "data"]
    killed = warm(tmp_path, *prepare, HARNESS_KILL_AT="split-written:2")
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "data" / "digits" / "train.json").exists() != (
        tmp_path / "data" / "digits" / "test.json"
    ).exists()
    assert "1297 images" in tool(tmp_path, "prepare_data.py", "digits", "--out", "data")


def wait_until(true: object, seconds: float) -> None:
    """Wait until `true()` holds; fail after `seconds`."""
    assert callable(true)
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.1)
