"""Test launches on two nodes, simulated by two network namespaces.

A virtual cable that can be cut joins them. Each node has its own launcher and working directory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.recipes.launching import REPOSITORY, TINY, elsewhere, nodes, run_ids

pytestmark = pytest.mark.slow

CABLE = "veth0"
ADDRESS = "10.203.0.1", "10.203.0.2"
SERVER = f"http://{ADDRESS[0]}:5000"
OWN_STORE, NO_STORE = "sqlite:///mlflow.db", "nowhere://node-1-must-not-ask"
LAUNCH = ["launch", "-q", "--num_machines", "2", "--num_processes", "2", "--multi_gpu", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--main_process_ip", ADDRESS[0]]
# level 1 is long enough for a fault in the middle; level 0 is too short to save a state
SEARCH = ["recipes/aws_digits.py", *TINY, "--num-levels", "1", "--level-epochs", "24", "--data.loader", "memory"]
SEARCH += ["--checkpoint-every", "4", "--checkpoint-unit", "epochs"]
END_SECONDS = 60
"""Time limit for both nodes to end after a fault."""


@dataclass
class Launch:
    """One command running on both nodes."""

    launchers: list[subprocess.Popen]
    logs: list[Path]

    def ended(self, seconds: float) -> list[int]:
        """Return the exit codes; both must end within `seconds`."""
        end = time.monotonic() + seconds
        try:
            return [launcher.wait(max(0.0, end - time.monotonic())) for launcher in self.launchers]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.text()}") from None

    def output(self) -> str:
        """Wait for both nodes to succeed, and return their output."""
        assert self.ended(240) == [0, 0], self.text()
        return self.text()

    def text(self) -> str:
        """Return the output of both nodes so far."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)


@dataclass
class TwoNodes:
    """Two namespaces and the processes that run in them."""

    names: tuple[str, str]
    directory: Path
    launches: int = 0
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, node: int, where: Path, log: Path, *command: str, **environment: str) -> subprocess.Popen:
        """Start a command on one node, with its output in `log`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "ACCELERATE_"))}
        env |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"} | environment
        with open(log, "wb") as stream:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self.names[node], *command],
                cwd=where,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(started)
        return started

    def launch(self, where: Path, recipe: str, *options: str, store: str) -> Launch:
        """Start a recipe on both nodes, one process each.

        Node 0 runs in the directory `where`/0, and node 1 in `where`/1.

        Args:
            store: Tracking URI for node 0; node 1 gets an unusable one, because only rank 0 may use it.
        """
        self.launches += 1
        port = ["--main_process_port", str(29500 + self.launches)]
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        logs = [where / f"{self.launches}-{Path(recipe).stem}-{node}.log" for node in (0, 1)]
        launchers = []
        for node, uri in enumerate((store, NO_STORE)):
            command = [accelerate, *LAUNCH, *port, "--machine_rank", str(node), str(REPOSITORY / recipe), *options]
            settings = {
                "ACCELERATE_USE_CPU": "true",
                "GLOO_SOCKET_IFNAME": CABLE,
                "MLFLOW_TRACKING_URI": uri,
            }
            launchers.append(self.start(node, where / str(node), logs[node], *command, **settings))
        return Launch(launchers, logs)

    def worker(self, launch: Launch, node: int) -> int:
        """Return the process ID of the training process on one node."""
        for line in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(line.read_text().rpartition(")")[2].split()[1])
                environment = (line.parent / "environ").read_bytes()
            except OSError:
                continue  # the process ended meanwhile
            if parent == launch.launchers[node].pid and f"\0RANK={node}\0".encode() in environment:
                return int(line.parent.name)
        raise AssertionError(f"no process of rank {node}: {launch.text()}")

    def soon_worker(self, launch: Launch, node: int) -> int:
        """Wait for the training process on one node; return its PID."""
        until = time.monotonic() + 240  # a busy machine takes long to import torch
        while True:
            try:
                return self.worker(launch, node)
            except AssertionError:
                assert time.monotonic() < until
                time.sleep(0.05)

    def plug(self, *, into: bool) -> None:
        """Connect the cable of node 1, or disconnect it."""
        _ip("-n", self.names[1], "link", "set", CABLE, "up" if into else "down")


def _ip(*command: str) -> str:
    return subprocess.run(["ip", *command], check=True, capture_output=True, text=True, timeout=30).stdout


def _lay_cable(names: tuple[str, str]) -> None:
    for name in names:
        _ip("netns", "add", name)
    _ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
    for name, address in zip(names, ADDRESS, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
        for device in ("lo", CABLE):
            _ip("-n", name, "link", "set", device, "up")
        _ip("netns", "exec", name, "true")


def _remove(name: str) -> None:
    """Kill all processes in a namespace and delete it."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=30)
    for pid in listed.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def two(prepared, tmp_path_factory) -> Iterator[TwoNodes]:
    """Yield two nodes with the prepared digits; skip without root or iproute2."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2's `ip`")
    names = f"tickets-{os.getpid()}-0", f"tickets-{os.getpid()}-1"
    made = TwoNodes(names, tmp_path_factory.mktemp("nodes"))
    try:
        try:
            _lay_cable(names)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {' '.join(error.cmd)}: {error.stderr.strip()}")
        (made.directory / "data").symlink_to(prepared / "data")
        yield made
    finally:
        for name in names:
            _remove(name)
        for process in made.processes:
            process.wait(30)


def serve(two: TwoNodes) -> None:
    """Start an MLflow server on node 0 and wait for it.

    It serves the artifacts, too.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", ADDRESS[0], "--port", "5000", "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///served.db"]
    command += ["--serve-artifacts", "--artifacts-destination", "artifacts"]
    log = two.directory / "server.log"
    # without MLflow's job schedulers, which delay the start by seconds
    two.start(0, two.directory, log, *command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    ask = f"""
import time, urllib.request
for _ in range(600):
    try:
        raise SystemExit(urllib.request.urlopen("{SERVER}/health", timeout=5).status != 200)
    except OSError:
        time.sleep(0.2)
raise SystemExit("no answer")
"""
    asked = two.start(0, two.directory, two.directory / "asked.log", sys.executable, "-c", ask)
    assert asked.wait(150) == 0, log.read_text()


def fresh(two: TwoNodes, name: str) -> Path:
    """Create a working directory without runs for each node.

    Return their parent directory.
    """
    for node in ("0", "1"):
        where = two.directory / name / node
        where.mkdir(parents=True)
        elsewhere(two.directory, where)
    return two.directory / name


def digests(where: Path) -> dict[str, list[str]]:
    """Return the SHA-256 of each level's checkpoint and mask, by key."""
    files = ("checkpoint.safetensors", "signed_mask.safetensors")
    levels = nodes(where / "0", "level").values()
    return {record["key"]: [record["files"][file] for file in files] for record in levels}


@pytest.fixture(scope="module")
def undisturbed(two) -> tuple[Path, list[str]]:
    """Run a search without faults, with an MLflow server on node 0.

    Returns:
        Its directory and the run IDs of its levels.
    """
    where = fresh(two, "undisturbed")
    serve(two)
    output = two.launch(where, *SEARCH, store=SERVER).output()
    return where, run_ids(output)


def test_search_training_and_barrier(two, undisturbed):
    where, ids = undisturbed
    assert len(ids) == len(digests(where)) == 2
    options = ["--ticket", ids[-1], "--kind", "signed_mask", "--init-seed", "2"]
    output = two.launch(where, "recipes/train_ticket.py", *options, store=SERVER).output()
    trained = re.search(r"run ([0-9a-f]{32})$", output, re.M)
    assert trained is not None, output
    lmc = [sys.executable, str(REPOSITORY / "tools" / "lmc.py"), ids[-1], trained[1], "--json"]
    log = where / "lmc.log"
    assert two.start(0, where / "0", log, *lmc, MLFLOW_TRACKING_URI=SERVER).wait(120) == 0, log.read_text()
    assert len(json.loads(log.read_text().splitlines()[-1])["error_percent"]) == 11
    # node 1 has no runs and no database, and only node 0 connected to the server
    assert not list((where / "1").glob("runs/*/record.json")) and not list((where / "1").glob("mlflow.db*"))
    server_log = (two.directory / "server.log").read_text()
    assert f"{ADDRESS[0]}:" in server_log and f"{ADDRESS[1]}:" not in server_log


def _kill(two: TwoNodes, launch: Launch) -> None:
    os.kill(two.worker(launch, 1), signal.SIGKILL)


def _cut(two: TwoNodes, launch: Launch) -> None:
    two.plug(into=False)


@pytest.mark.parametrize(("fault", "lost_by"), [(_kill, [0]), (_cut, [0, 1])], ids=["killed", "cut"])
def test_a_fault_ends_both_nodes_and_the_same_command_continues(
    two: TwoNodes,
    undisturbed: tuple[Path, list[str]],
    fault: Callable[[TwoNodes, Launch], None],
    lost_by: list[int],
):
    # Phase: start a search and wait for a saved state of level 1; level 0 is too short to save one
    where = fresh(two, fault.__name__)
    # with its own store, because it would fetch the finished levels from the shared one
    launch = two.launch(where, *SEARCH, store=OWN_STORE)
    while not list((where / "0" / "runs").glob(".making-level-*/state-*")):
        assert launch.launchers[0].poll() is None, launch.text()
        time.sleep(0.05)
    # Phase: inject the fault; both launches end
    try:
        fault(two, launch)
        began = time.monotonic()
        assert 0 not in launch.ended(END_SECONDS)
        seconds = time.monotonic() - began
    finally:
        two.plug(into=True)
    print(f"{fault.__name__}: both launches ended after {seconds:.1f} s")
    status = json.loads((where / "0" / "runs" / "status.json").read_text())["status"]
    assert status in ("running", "preempted"), "the status must tell a script to start the launch again"
    assert len(digests(where)) == 1, "the fault came after the training had finished"
    for node in lost_by if status == "running" else []:  # otherwise gloo reported the loss first
        lines = [line for line in launch.logs[node].read_text().splitlines() if "lost process" in line]
        assert len(lines) == 1 and lines[0].startswith(f"process {node} of 2 on ")
    # Phase: the same command resumes and gives the same bytes
    assert "resumes at epoch" in two.launch(where, *SEARCH, store=OWN_STORE).output()
    assert digests(where) == digests(undisturbed[0])


@pytest.mark.parametrize("fault", [_kill, _cut], ids=["killed", "cut"])
def test_a_fault_before_all_have_joined_ends_both_nodes(two: TwoNodes, fault: Callable[[TwoNodes, Launch], None]):
    """Inject the fault while node 1 waits for node 0 to join.

    Node 0 is suspended during its start.
    """
    launch = two.launch(fresh(two, f"early{fault.__name__}"), *SEARCH, store=OWN_STORE)
    slow = two.soon_worker(launch, 0)
    os.kill(slow, signal.SIGSTOP)
    two.soon_worker(launch, 1)
    time.sleep(20)  # long enough to import torch and begin to wait
    try:
        fault(two, launch)
        began = time.monotonic()
        os.kill(slow, signal.SIGCONT)
        assert 0 not in launch.ended(END_SECONDS)
        seconds = time.monotonic() - began
    finally:
        two.plug(into=True)
    print(f"{fault.__name__} before all had joined: both launches ended after {seconds:.1f} s")
    assert "before all had joined; ending" in launch.text()


def test_a_process_killed_before_it_begins_to_join_ends_both_nodes(two: TwoNodes):
    """Kill node 1's process while it imports torch.

    It never contacts process 0, but the end of its launcher is detected.
    """
    launch = two.launch(fresh(two, "unbegun"), *SEARCH, store=OWN_STORE)
    os.kill(two.soon_worker(launch, 1), signal.SIGKILL)
    began = time.monotonic()
    assert 0 not in launch.ended(END_SECONDS)
    print(f"killed before it began to join: both launches ended after {time.monotonic() - began:.1f} s")
    assert f"lost the launcher of a node (at {ADDRESS[1]}; it ended" in launch.text()
