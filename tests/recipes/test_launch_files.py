"""Test recipes/launch: Accelerate's configuration files and the Slurm script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.warm import warm

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "recipes" / "launch"
SBATCH, ARRAY = LAUNCH / "slurm.sbatch", LAUNCH / "slurm_array.sbatch"
TRAINJOB = LAUNCH / "trainjob.yaml"
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("name", "processes", "machines", "distributed"),
    [
        ("cpu_2_processes", 2, 1, "MULTI_GPU"),
        ("gpu_1", 1, 1, "NO"),
        ("gpu_8", 8, 1, "MULTI_GPU"),
        ("nodes_2x8", 16, 2, "MULTI_GPU"),
    ],
)
def test_each_launch_file_has_the_settings_in_its_name(name, processes, machines, distributed):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.distributed_type.value == distributed
    assert config.mixed_precision == "no" and not config.use_cpu


def test_the_header_of_each_launch_file_is_a_valid_command():
    from accelerate.commands.launch import launch_command_parser

    files = sorted({*LAUNCH.glob("*.yaml")} - {TRAINJOB})
    assert len(files) == 4
    for file in files:
        lines = file.read_text().splitlines()
        command = lines[1].removeprefix("# accelerate launch ").split()
        assert lines[0].endswith(":") and not lines[2].startswith("#")
        args = launch_command_parser().parse_args(command)
        assert REPOSITORY / args.config_file == file
        assert (REPOSITORY / args.training_script).parent == REPOSITORY / "recipes"
        assert (REPOSITORY / args.training_script).is_file()


def test_the_kubernetes_manifest_is_a_valid_train_job():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    written = yaml.safe_load(TRAINJOB.read_text())
    # the models drop unknown fields, so an equal result has none
    assert models.TrainerV1alpha1TrainJob.from_dict(written).to_dict() == written


def test_the_kubernetes_manifest_starts_a_recipe_that_restarts():
    from torch.distributed.run import get_args_parser

    spec = yaml.safe_load(TRAINJOB.read_text())["spec"]
    launcher, *words = spec["trainer"]["command"] + spec["trainer"]["args"]
    args = get_args_parser().parse_args(words)
    assert launcher == "torchrun" and args.max_restarts == 3 and spec["trainer"]["numNodes"] == 1
    assert (REPOSITORY / args.training_script).is_file()
    (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    paths = [word for word in args.training_script_args if word.startswith("/")]
    assert len(paths) == 2 and all(path.startswith(f"{mounted['volume']}/") for path in paths)


@pytest.mark.long
def test_two_cpu_processes_are_one_world_of_two(tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "from harness.distributed.world import World\n"
        "import torch\n"
        "world = World()\n"
        "ranks = int(world.sum(torch.tensor(1 + world.rank)))\n"
        "print(f'rank {world.rank} of {world.size} on {world.device.type}, sum {ranks}', flush=True)\n"
        "world.close()\n"
    )
    done = warm(
        tmp_path,
        BIN / "accelerate",
        *("launch", "--config_file", str(LAUNCH / "cpu_2_processes.yaml"), str(script)),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    said = sorted(re.findall(r"rank \d of \d on cpu, sum \d", done.stdout))  # both processes may write to the same line
    assert said == ["rank 0 of 2 on cpu, sum 3", "rank 1 of 2 on cpu, sum 3"]


class Cluster:
    """Stand in for a Slurm cluster.

    This is a submit directory with fake Slurm commands first on PATH.
    """

    def __init__(self, where: Path) -> None:
        self.where = where
        self.bin = where / "bin"
        self.bin.mkdir()
        self.command(
            "scontrol", 'if [[ $1 == show ]]; then printf "%s\\n" localhost node2; else echo "$*" >>requeued; fi'
        )

    def command(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def srun(self, body: str) -> None:
        """Install a fake `srun` that runs `body` without srun's options.

        In `body`, "$@" is a node's command.
        """
        self.command("srun", f"while [[ $1 == --* ]]; do shift; done\n{body}")

    def submit(self, *arguments: str, script: Path = SBATCH, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{self.bin}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        env |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]"}
        env |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "VENV": "none", **environment}
        command = ["bash", str(script), *(arguments or ("recipes/aws_digits.py",))]
        return subprocess.run(command, cwd=self.where, env=env, capture_output=True, text=True, timeout=120)

    @property
    def requeued(self) -> list[str]:
        file = self.where / "requeued"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def writes(status: str) -> str:
    return f"""printf '{{"status": "{status}", "pid": 1}}' >"$HARNESS_STATUS"; """


@pytest.mark.parametrize("script", [SBATCH, ARRAY], ids=lambda script: script.name)
def test_the_slurm_scripts_are_valid_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize(("first", "element", "shard"), [(1, 1, "1/4"), (1, 4, "4/4"), (0, 0, "1/4"), (5, 7, "3/4")])
def test_an_element_of_a_slurm_array_makes_its_shard(cluster, first, element, shard):
    cluster.srun('printf "%s\\n" "$@" >launched')
    array = {"SLURM_ARRAY_TASK_MIN": str(first), "SLURM_ARRAY_TASK_ID": str(element), "SLURM_ARRAY_TASK_COUNT": "4"}
    done = cluster.submit("recipes/reproduce.py", "fig3", script=ARRAY, **array)
    assert done.returncode == 0 and not cluster.requeued, done.stderr
    launched = (cluster.where / "launched").read_text().splitlines()
    assert launched == ["python", "recipes/reproduce.py", "fig3", "--shard", shard]


@pytest.mark.parametrize(
    ("body", "restarts", "requeues", "code"),
    [
        ("exit 75", "0", 1, 0),
        ("exit 75", "20", 0, 1),
        ("exit 1", "0", 0, 1),
        ("kill -TERM $PPID; exit 75", "0", 0, 75),  # preempted or cancelled
    ],
)
def test_an_element_of_a_slurm_array_is_requeued_after_code_75(cluster, body, restarts, requeues, code):
    cluster.srun(body)
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "2"}
    done = cluster.submit(script=ARRAY, SLURM_RESTART_COUNT=restarts, **array)
    assert done.returncode == code and len(cluster.requeued) == requeues, done.stderr


@pytest.mark.parametrize(
    ("status", "requeues", "code"),
    [("preempted", 1, 0), ("running", 1, 0), ("finished", 0, 0), ("failed", 0, 1), ("unheard-of", 0, 1)],
)
@pytest.mark.parametrize("srun_code", [0, 1])
def test_requeueing_follows_the_status_file_and_not_the_exit_code(cluster, status, requeues, code, srun_code):
    cluster.srun(writes(status) + f"exit {srun_code}")
    done = cluster.submit()
    assert done.returncode == code, done.stderr
    assert cluster.requeued == [f"requeue {os.getpid()}"] * requeues


@pytest.mark.parametrize(("restarts", "requeues", "code"), [("1", 1, 0), ("2", 0, 1)])
@pytest.mark.parametrize("status", ["preempted", "running"])
def test_requeueing_ends_at_the_maximum(cluster, status, restarts, requeues, code):
    cluster.srun(writes(status))
    done = cluster.submit(MAX_REQUEUES="2", SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code and len(cluster.requeued) == requeues
    assert ("MAX_REQUEUES=2" in done.stderr) == bool(code)


def test_the_default_maximum_is_20(cluster):
    cluster.srun(writes("preempted"))
    assert cluster.submit(SLURM_RESTART_COUNT="19").returncode == 0
    assert cluster.submit(SLURM_RESTART_COUNT="20").returncode == 1
    assert len(cluster.requeued) == 1


def test_a_stale_status_file_is_ignored(cluster):
    cluster.srun(writes("preempted"))
    assert cluster.submit().returncode == 0
    cluster.srun("exit 1")  # ends before the harness writes a status
    done = cluster.submit()
    assert done.returncode == 1 and "status missing" in done.stderr and len(cluster.requeued) == 1


def test_a_broken_status_is_not_requeued(cluster):
    cluster.srun("""printf '{"status' >"$HARNESS_STATUS" """)
    done = cluster.submit()
    assert done.returncode == 1 and "status unreadable" in done.stderr and not cluster.requeued


def test_a_cancelled_job_is_not_requeued(cluster):
    cluster.srun("kill -TERM $PPID; " + writes("preempted"))  # Slurm signals the batch shell, which waits for srun
    done = cluster.submit()
    assert done.returncode == 1 and "told to end" in done.stderr and not cluster.requeued


def test_a_missing_recipe_prints_the_usage(cluster):
    cluster.srun("touch started")
    done = subprocess.run(["bash", str(SBATCH)], cwd=cluster.where, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch recipes/launch/slurm.sbatch recipes/" in done.stderr


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 8), (1, 8), (1, 1), (4, 2)])
def test_each_node_gets_a_launcher_with_slurms_numbers(cluster, nodes, gpus):
    from accelerate.commands.launch import launch_command_parser

    cluster.srun(f'for ((n = 0; n < {nodes}; n++)); do SLURM_PROCID=$n "$@"; done; ' + writes("finished"))
    cluster.command("accelerate", 'printf "%s\\0" "$@" >>launched; printf "\\n" >>launched')
    options = ("--precision", "bf16", "--experiment", "two words")
    done = cluster.submit("recipes/aws_imagenet.py", *options, SLURM_NNODES=str(nodes), SLURM_GPUS_ON_NODE=str(gpus))
    assert done.returncode == 0, done.stderr
    launched = (cluster.where / "launched").read_text().splitlines()
    assert len(launched) == nodes
    for rank, line in enumerate(launched):
        first, *rest = line.split("\0")[:-1]
        args = launch_command_parser().parse_args(rest)
        assert first == "launch" and args.machine_rank == rank
        assert (args.num_machines, args.num_processes) == (nodes, nodes * gpus)
        assert args.main_process_ip == "localhost" and 20000 <= args.main_process_port < 30000
        assert REPOSITORY / args.config_file == LAUNCH / "nodes_2x8.yaml"
        assert args.training_script == "recipes/aws_imagenet.py"
        assert tuple(args.training_script_args) == options


@pytest.mark.parametrize("image", ["", "signed-tickets.sif"])
def test_everything_that_needs_python_runs_in_the_apptainer_image(cluster, image):
    cluster.srun('SLURM_PROCID=0 "$@"; ' + writes("finished"))
    cluster.command("accelerate", "exit")
    cluster.command("apptainer", 'printf "%s " "$@" >>contained; printf "\n" >>contained; shift 5; exec "$@"')
    done = cluster.submit(IMAGE=image, SLURM_NNODES="1")
    assert done.returncode == 0, done.stderr
    contained = cluster.where / "contained"
    calls = contained.read_text().splitlines() if contained.exists() else []
    head = f"exec --nv --bind {cluster.where} {image} "
    starts = [call.removeprefix(head).split()[0] for call in calls if call.startswith(head)]
    assert starts == (["bash", "python"] if image else [])


@pytest.mark.long
def test_slurms_warning_signal_reaches_the_workers_and_launchers_wait(cluster):
    """Run two real launchers and send both SIGUSR1.

    For one, only the launcher gets it. For the other, its whole process tree does.
    """
    # Phase: a worker that notes its signals, saves for a second and exits
    (cluster.where / "worker.py").write_text(
        "import os, signal, sys, time\n"
        "heard = []\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "    signal.signal(number, lambda number, frame: heard.append(number))\n"
        "rank = os.environ['RANK']\n"
        "open(f'up-{rank}', 'w').write(f'{os.getpid()} ')\n"
        "end = time.monotonic() + 60\n"
        "while signal.SIGTERM not in heard:\n"
        "    assert time.monotonic() < end\n"
        "    time.sleep(0.05)\n"
        "time.sleep(1)\n"  # stands for saving
        "open(f'saved-{rank}-of-' + os.environ['WORLD_SIZE'], 'w').close()\n"
        "if rank == '0':\n"
        "    open(os.environ['HARNESS_STATUS'], 'w').write('{\"status\": \"preempted\"}')\n"
        "sys.exit(1)\n"
    )
    # Phase: a fake srun that sends SIGUSR1 to both launchers
    cluster.srun(
        "for n in 0 1; do\n"
        # Slurm kills the remaining processes of a task once the task has ended
        '    (SLURM_PROCID=$n "$@" & echo $! >task-$n; wait; kill -KILL $(cat up-$n) 2>/dev/null) &\n'
        "done\n"
        "until [[ (-e up-0 && -e up-1) || -z $(jobs -r) ]]; do sleep 0.1; done\n"
        "alone=$(cat task-0) tree=$(cat task-1)\n"
        "kill -USR1 $alone\n"
        "kill -USR1 $tree $(pgrep -P $tree) $(pgrep -P $(pgrep -P $tree))\n"
        "wait\n"
        "exit 0"
    )
    # Phase: both workers saved, and the job is requeued
    settings = {"SLURM_GPUS_ON_NODE": "1", "LAUNCH_CONFIG": str(LAUNCH / "nodes_2x8.yaml")}
    done = cluster.submit("worker.py", **settings)
    saved = sorted(path.name for path in cluster.where.glob("saved-*"))
    assert saved == ["saved-0-of-2", "saved-1-of-2"], done.stderr
    assert done.returncode == 0 and cluster.requeued == [f"requeue {os.getpid()}"]
