"""Two nodes: network namespaces joined by a cable that can be cut, each with a launcher and a directory of its own."""

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
# level 1 is long enough to be disturbed in; level 0 too short for a saved state
SEARCH = ["recipes/aws_digits.py", *TINY, "--num-levels", "1", "--level-epochs", "24", "--data.loader", "memory"]
SEARCH += ["--checkpoint-every", "4", "--checkpoint-unit", "epochs"]
END_SECONDS = 60
"""A launch that has lost a node must have ended everywhere by then."""


@dataclass
class Launch:
    """One command on both nodes."""

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
        """Return what both said, after checking that they end well."""
        assert self.ended(240) == [0, 0], self.text()
        return self.text()

    def text(self) -> str:
        """Return what both have said so far."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)


@dataclass
class TwoNodes:
    """The two namespaces; what runs in them ends with them."""

    names: tuple[str, str]
    directory: Path
    launches: int = 0
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, node: int, where: Path, log: Path, *command: str, **environment: str) -> subprocess.Popen:
        """Start a command on one node; both of its streams go to `log`."""
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
        """Start a recipe in `where`/0 and `where`/1, one process on each node; node 0 alone has a usable `store`."""
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
                continue  # ended meanwhile
            if parent == launch.launchers[node].pid and f"\0RANK={node}\0".encode() in environment:
                return int(line.parent.name)
        raise AssertionError(f"no process of rank {node}: {launch.text()}")

    def soon_worker(self, launch: Launch, node: int) -> int:
        """Return the process ID of the training process on one node as soon as there is one."""
        until = time.monotonic() + 60
        while True:
            try:
                return self.worker(launch, node)
            except AssertionError:
                assert time.monotonic() < until
                time.sleep(0.05)

    def plug(self, *, into: bool) -> None:
        """Pull the cable out of node 1, or put it in again."""
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
    """End what runs in a namespace, then the namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=30)
    for pid in listed.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def two(prepared, tmp_path_factory) -> Iterator[TwoNodes]:
    """Two nodes, and the digits for both."""
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
    """Start MLflow on node 0, with artifacts that go through the server, and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", ADDRESS[0], "--port", "5000", "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///served.db"]
    command += ["--serve-artifacts", "--artifacts-destination", "artifacts"]
    log = two.directory / "server.log"
    # its schedulers would take seconds of a small machine
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
    """Return a directory with one working directory for each node, the data in each and no runs."""
    for node in ("0", "1"):
        where = two.directory / name / node
        where.mkdir(parents=True)
        elsewhere(two.directory, where)
    return two.directory / name


def digests(where: Path) -> dict[str, list[str]]:
    """Return the SHA-256 of checkpoint and signed mask of each finished level, by its key."""
    files = ("checkpoint.safetensors", "signed_mask.safetensors")
    levels = nodes(where / "0", "level").values()
    return {record["key"]: [record["files"][file] for file in files] for record in levels}


@pytest.fixture(scope="module")
def undisturbed(two) -> tuple[Path, list[str]]:
    """A search that nothing disturbed, delivered to an MLflow server on node 0: its directory, its levels' run IDs."""
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
    # node 1 had no store to talk to, kept nothing, and the server heard of node 0 alone
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
    where = fresh(two, fault.__name__)
    # a store of its own: from the shared one it would fetch the levels instead of making them
    launch = two.launch(where, *SEARCH, store=OWN_STORE)
    while not list((where / "0" / "runs").glob(".making-level-*/state-*")):  # of level 1: level 0 is too short for one
        assert launch.launchers[0].poll() is None, launch.text()
        time.sleep(0.05)
    try:
        fault(two, launch)
        began = time.monotonic()
        assert 0 not in launch.ended(END_SECONDS)
        seconds = time.monotonic() - began
    finally:
        two.plug(into=True)
    print(f"{fault.__name__}: both launches ended after {seconds:.1f} s")
    status = json.loads((where / "0" / "runs" / "status.json").read_text())["status"]
    assert status in ("running", "preempted"), "a script must see that this launch is to be started again"
    assert len(digests(where)) == 1, "the fault came too late to disturb a training"
    for node in lost_by if status == "running" else []:  # else gloo was the first to say it
        lines = [line for line in launch.logs[node].read_text().splitlines() if "lost process" in line]
        assert len(lines) == 1 and lines[0].startswith(f"process {node} of 2 on ")
    assert "resumes at epoch" in two.launch(where, *SEARCH, store=OWN_STORE).output()
    assert digests(where) == digests(undisturbed[0])


@pytest.mark.parametrize("fault", [_kill, _cut], ids=["killed", "cut"])
def test_a_fault_before_all_have_joined_ends_both_nodes(two: TwoNodes, fault: Callable[[TwoNodes, Launch], None]):
    """Node 0 is slow to start; node 1 has begun to join, and waits for it."""
    launch = two.launch(fresh(two, f"early{fault.__name__}"), *SEARCH, store=OWN_STORE)
    slow = two.soon_worker(launch, 0)
    os.kill(slow, signal.SIGSTOP)
    two.soon_worker(launch, 1)
    time.sleep(20)  # torch is imported, and the waiting has begun
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
    """Node 1's process is killed while Python still loads torch: it never says a word, but its launcher ends."""
    launch = two.launch(fresh(two, "unbegun"), *SEARCH, store=OWN_STORE)
    os.kill(two.soon_worker(launch, 1), signal.SIGKILL)
    began = time.monotonic()
    assert 0 not in launch.ended(END_SECONDS)
    print(f"killed before it began to join: both launches ended after {time.monotonic() - began:.1f} s")
    assert f"lost the launcher of a node (at {ADDRESS[1]}; it ended" in launch.text()
