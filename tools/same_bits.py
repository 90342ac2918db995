"""Prove that a change moved no number: two versions of the code, the same small launches, every result compared.

    python tools/same_bits.py                      the working tree against the last commit
    python tools/same_bits.py --rev bb5d02b        … against any commit, tag or branch
    python tools/same_bits.py --rev HEAD~3 --keep  … and keep both stores to look into

Both versions train tiny networks on scikit-learn's digits: on the CPU, in one process each, offline. They run every
search method, the final trainings, the comparisons, a search that is killed and resumed, and a short demo. Then the
working tree continues a search in each store, and verifies the store of REV. Uncommitted changes count. It takes about
three minutes on two idle cores.

Exit code 0: equal. 1: a difference, named line by line. 2: no answer, because a launch or `verify` failed, or REV is
unknown.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]

WALL_CLOCK_METRICS = ("images_per_second", "system/*")
"""Metrics that depend on the machine instead of the training."""
NOT_COMPARED = ("started_ms", "finished_ms", "code", "config.argv", "config.command", "files")
"""Record fields with times, code version and command line. `files` has digests, and the files are compared directly."""
COMPARED_AS_FIELDS = ("record.json", "config.json", "SHA256SUMS")
"""Files with times or command lines. The first two are compared field by field, and the third follows from them."""
FOREIGN = ("ACCELERATE_*", "HARNESS_*", "MLFLOW_*", "WORLD_SIZE", "RANK", "LOCAL_*", "MASTER_*")
"""Environment variables of the caller that would change a launch. They are removed."""


@dataclass(frozen=True)
class TwoVersions:
    """Which version the working tree is compared with."""

    rev: str = "HEAD"
    """Commit, tag or branch. HEAD shows that uncommitted changes move no number."""
    keep: bool = False
    """Keep both stores and the logs of all launches, and say where they are."""


@dataclass(frozen=True)
class Launch:
    """One command line.

    `{name}` in `options` is replaced by the key of the run that the launch `name` made.
    """

    name: str
    script: str
    options: str
    killed_at: str | None = None
    """Fault point (see `harness.common.files`) at which this launch kills itself, or None."""


SMALL = (
    "--data.loader memory --model.name resnet8 --model.width 4 --warmup-epochs 2 --level-epochs 1 "
    "--final.epochs 2 --offline"
)
GEM_MINER = (
    "--gem-miner.score-epochs 2 --gem-miner.freeze-every-epochs 1 --gem-miner.finetune.epochs 1 "
    "--gem-miner.finetune.lr-milestones-epochs 1"
)
SEARCHES = {"aws": 2, "lrr": 2, "lrr_full": 1, "lrr_bn_rewind": 1, "imp": 1, "wr": 1, "random": 1, "dense": 1}
"""Number of levels for each method. METHODS is not used, because REV may not have the newest methods yet."""
FINALS = {
    "signed": "--kind signed_mask --init-seed 2 --sgd-seed 1",
    "signed_again": "--kind signed_mask --init-seed 2 --sgd-seed 2",
    "mask": "--kind mask --init-seed 2 --sgd-seed 1",
    "retrain": "--kind retrain --sgd-seed 1",
    "dense_final": "--kind dense --init-seed 2 --sgd-seed 1",
    "from_a_run": "--kind mask --signs pruned --init-seed 2 --sgd-seed 1 --initialisation {lrr}",
}
WAYS = {
    "as_printed": "--order paper --num-levels 2 --init-seed 5",
    "in_one_shot": "--method imp --one-shot --num-levels 2 --init-seed 5",
    "by_layer": "--method wr --rewind-to 5 --rewind-unit steps --pruning-scope layer --num-levels 1 --init-seed 6",
    "by_density": "--method lrr --densities 0.5 0.2 --num-levels 2 --init-seed 6 --initialisation {aws}",
}
"""Searches with settings other than the default ones."""
COMPARISONS = {"stability": "{signed} {signed_again}", "lmc": "{signed} {retrain}", "norm_barrier": "{aws}"}
DEMO = "--data.loader memory --warmup-epochs 1 --level-epochs 1 --num-levels 1 --final.epochs 2 --offline"
"""The demo with fewer epochs: both methods, all its final trainings and comparisons."""
RESUMED = f"{SMALL} --init-seed 3 --num-levels 1 --checkpoint-every 3 --checkpoint-unit steps"


def launches() -> Iterator[Launch]:
    """Yield the commands that fill one directory of runs, in the order they need."""
    for method, levels in SEARCHES.items():
        yield Launch(method, "recipes/aws_digits.py", f"{SMALL} --method {method} --num-levels {levels}")
    yield Launch("gem_miner", "recipes/aws_digits.py", f"{SMALL} --method gem_miner --num-levels 1 {GEM_MINER}")
    for name, options in WAYS.items():
        yield Launch(name, "recipes/aws_digits.py", f"{SMALL} {options}")
    for name, options in FINALS.items():
        yield Launch(name, "recipes/train_ticket.py", f"--ticket {{aws}} {options} --offline")
    for tool, runs in COMPARISONS.items():
        yield Launch(tool, f"tools/{tool}.py", f"{runs} --num-alphas 3 --offline")
    yield Launch("killed", "recipes/aws_digits.py", RESUMED, killed_at="step:50")  # in the middle of level 1
    yield Launch("resumed", "recipes/aws_digits.py", RESUMED)
    yield Launch("demo", "recipes/demo.py", DEMO)


CONTINUED = Launch("continued", "recipes/aws_digits.py", f"{SMALL} --num-levels {SEARCHES['aws'] + 1}")
VERIFIED = Launch("verified", "tools/lineage.py", "verify --all --offline")


# --- Make the two stores ---


class NoAnswerError(Exception):
    """The two versions could not be compared. The message gives the reason."""


def git(*arguments: str) -> bytes:
    """Run git in this repository and return its output.

    Raises:
        NoAnswerError: git failed; with its message.
    """
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    if done.returncode:
        raise NoAnswerError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def export(rev: str, tree: Path) -> str:
    """Write the files of `rev` to `tree`; return the commit hash."""
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}").decode().strip()
    except NoAnswerError as error:
        raise NoAnswerError(
            f"REV {rev!r} is not a commit of this repository ({error}); give one of `git log`"
        ) from None
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit))) as files:
        files.extractall(tree, filter="data")
    return commit


def snapshot(tree: Path) -> None:
    """Copy the code of the working tree to `tree`.

    Untracked files are included. The working tree can then be edited during the test.
    """
    for name in ("harness", "recipes", "tools"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))


def environment(tree: Path) -> dict[str, str]:
    """Return environment variables for launches with the harness in `tree`.

    They run on the CPU with one thread.
    """
    own = {name: value for name, value in os.environ.items() if not any(fnmatch(name, each) for each in FOREIGN)}
    own |= {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    # With libopencv-dev installed, numba prefers TBB, and then FFCV's writer never exits.
    return own | {"NUMBA_THREADING_LAYER": "omp", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass
class Maker:
    """Make a store in the directory `where` with the code in `tree`."""

    tree: Path
    where: Path
    keys: dict[str, str] = field(default_factory=dict)
    """Key of the last run that each launch made, by name of the launch."""

    def require_own_harness(self) -> None:
        """Raise NoAnswerError if recipes of this tree import another harness.

        This could be an installed one.
        """
        code = f"import sys; sys.path[0] = {str(self.tree / 'recipes')!r}; import harness; print(harness.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.where, env=environment(self.tree), capture_output=True, text=True
        )
        found = Path(done.stdout.strip() or "nowhere")
        if found.resolve() != (self.tree / "harness" / "__init__.py").resolve():
            raise NoAnswerError(f"recipes of {self.tree} would import {found}: {done.stderr.strip()[-500:]}")

    def make(self, bar: tqdm) -> None:
        """Run all launches in order and remember the keys of their runs."""
        self.require_own_harness()
        made: dict[str, dict[str, Any]] = {}
        for launch in launches():
            self.run(launch)
            after = records(self.where / "runs")
            new = [after[key] for key in after.keys() - made.keys()]
            if new:
                self.keys[launch.name] = max(new, key=lambda record: record["tags"].get("level", ""))["key"]
            made = after
            bar.update()

    def run(self, launch: Launch) -> None:
        """Run one launch.

        Raises:
            NoAnswerError: It failed, or was not killed at its fault point; with the end of its log.
        """
        options = shlex.split(launch.options.format(**self.keys))
        fault = {"HARNESS_KILL_AT": launch.killed_at} if launch.killed_at else {}
        log = self.where / f"{launch.name}.log"
        with log.open("wb") as output:
            command = [sys.executable, str(self.tree / launch.script), *options]
            env = environment(self.tree) | fault
            done = subprocess.run(command, cwd=self.where, env=env, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode != (-signal.SIGKILL if launch.killed_at else 0):
            said = log.read_text(errors="replace")[-2000:]
            raise NoAnswerError(f"{shlex.join(command)}\nexited with {done.returncode} in {self.where}:\n{said}")


def prepare_data(tree: Path, where: Path) -> None:
    """Prepare the digits once for both stores, with the tools of `tree`."""
    command = [sys.executable, str(tree / "tools" / "prepare_data.py"), "digits", "--out", "data"]
    done = subprocess.run(command, cwd=where, env=environment(tree), capture_output=True, text=True)
    if done.returncode:
        raise NoAnswerError(f"the data could not be prepared: {done.stderr.strip()[-2000:]}")


def make_stores(rev: str, place: Path) -> tuple[Path, Path]:
    """Make the stores of `rev` and of the working tree in parallel.

    Args:
        rev: Revision to compare with.
        place: Directory for the code, the data and both stores.

    Returns:
        (runs directory of `rev`, runs directory of the working tree).

    Raises:
        NoAnswerError: A launch failed, or the working tree did not reuse the runs of `rev`.
    """
    # Phase: code and data
    commit = export(rev, place / "code-before")
    snapshot(place / "code-after")
    prepare_data(place / "code-after", place)
    makers = [Maker(place / f"code-{side}", place / side) for side in ("before", "after")]
    for maker in makers:
        maker.where.mkdir()
        (maker.where / "data").symlink_to(place / "data")
    print(f"before: {rev} ({commit[:12]}), harness imported from {makers[0].tree}")
    print(f"after:  the working tree as it is now, harness imported from {makers[1].tree}", flush=True)

    # Phase: launches
    total = len(list(launches())) * len(makers)
    with tqdm(total=total, unit="launch", leave=False) as bar, ThreadPoolExecutor(len(makers)) as pool:
        list(pool.map(lambda maker: maker.make(bar), makers))

        # Phase: the working tree continues a search in both stores; it must reuse all levels of REV
        made = [len(records(maker.where / "runs")) for maker in makers]
        list(pool.map(lambda maker: replace(maker, tree=makers[1].tree).run(CONTINUED), makers))
    more = [len(records(maker.where / "runs")) - number for maker, number in zip(makers, made, strict=True)]
    if more != [1, 1]:
        raise NoAnswerError(
            f"one more level must make 1 run, but made {more[0]} in the store of {rev} and {more[1]} in the other"
        )
    replace(makers[0], tree=makers[1].tree).run(VERIFIED)
    print(f"the store of {rev}: continued by the working tree and verified with 0 problems")
    return makers[0].where / "runs", makers[1].where / "runs"


# --- Compare the two stores ---
# The files are read without the harness. A change of its reading code therefore cannot hide a difference.


def records(store: Path) -> dict[str, dict[str, Any]]:
    """Return the record of every finished run by key.

    Its path is added as `directory`.
    """
    paths = sorted(path for path in store.glob("*/record.json") if not path.parent.name.startswith("."))
    read = [json.loads(path.read_text()) | {"directory": path.parent} for path in paths]
    return {record["key"]: record for record in read}


@dataclass
class Report:
    """Count equal items and collect differences."""

    equal: Counter[str] = field(default_factory=Counter)
    """Number of equal items by kind."""
    moved: list[str] = field(default_factory=list)
    """Messages about different keys, files and metrics."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Messages about new, gone and different record fields, with the names of their runs."""

    @property
    def fields_changed(self) -> list[str]:
        """Messages about gone or different fields. New fields are no fault."""
        return [name for name in self.fields if not name.startswith("new ")]

    def compare(self, kind: str, name: str, same: bool, words: str) -> None:
        """Count an equal item, or add a message about its difference."""
        if same:
            self.equal[kind] += 1
        else:
            self.moved.append(f"{name}: {words}")

    def note_field(self, text: str, run: str) -> None:
        """Add a message about a record field of a run."""
        self.fields.setdefault(text, []).append(run)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report: counts by kind, then each difference."""
        count = self.equal
        yield f"{count['key']} keys equal"
        yield f"{count['checkpoint']} checkpoints equal byte for byte"
        yield f"{count['mask']} masks equal in every plane"
        yield f"{count['file']} other files equal byte for byte"
        yield f"{count['metric']} metrics of {count['point']} points equal"
        yield f"{count['field']} record fields equal (tags, parents, config and others)"
        yield f"not compared: metrics {', '.join(WALL_CLOCK_METRICS)}; fields {', '.join(NOT_COMPARED)}"
        yield from (f"DIFFERENT {text}" for text in self.moved)
        for text, runs in self.fields.items():
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            yield f"record field {text}, in {runs[0]}{more}"

    def verdict(self) -> str:
        """Return the result in one line."""
        if self.moved:
            return f"NOT EQUAL: differences: {len(self.moved)}"
        if self.fields_changed:
            return f"No number moved, but record fields are gone or different: {len(self.fields_changed)}"
        return "EQUAL: no number moved"


def compare(before: Path, after: Path) -> Report:
    """Compare all runs of two stores by key.

    Raises:
        NoAnswerError: The first store has no finished run.
    """
    report = Report()
    old, new = records(before), records(after)
    if not old:
        raise NoAnswerError(f"{before} holds no finished run")
    for key in sorted(old.keys() ^ new.keys(), key=lambda key: (old | new)[key]["name"]):
        where = "before" if key in old else "after"
        report.moved.append(f"{(old | new)[key]['name']}: key {key[:16]}… exists only {where}")
    for key in sorted(old.keys() & new.keys()):
        report.equal["key"] += 1
        compare_files(report, old[key], new[key])
        compare_metrics(report, old[key], new[key])
        compare_fields(report, old[key], new[key])
    return report


def compare_files(report: Report, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare every file of a run byte for byte; masks by their planes, since their format has two versions."""
    files = [_files(record["directory"]) for record in (old, new)]
    for name in sorted(files[0].keys() | files[1].keys()):
        if name not in files[0]:
            report.note_field(f"new file {name}", old["name"])
        elif name not in files[1]:
            report.moved.append(f"{old['name']}: {name} is gone")
        elif name not in COMPARED_AS_FIELDS:
            was, now = (side[name].read_bytes() for side in files)
            same = was == now or (_kind(name) == "mask" and _planes(was) == _planes(now))
            words = f"bytes of {name} differ ({files[0][name]}, {files[1][name]})"
            report.compare(_kind(name), old["name"], same, words)


def _files(directory: Path) -> dict[str, Path]:
    """Return {relative name: path} of all files below a directory."""
    return {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}


def _kind(name: str) -> str:
    """Return the kind under which a file is counted."""
    if not name.endswith(".safetensors") or name == "correct.safetensors":
        return "file"
    return "mask" if "mask" in name else "checkpoint"


def _planes(content: bytes) -> Any:
    """Return what a file of a signed mask says, apart from its format's version and digest; the bytes of others."""
    try:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        said = json.loads(header["__metadata__"]["harness"])
        kept = {name: said[name] for name in ("norm", "shapes", "metadata")}
    except (ValueError, KeyError, TypeError):
        return content
    return {name: place for name, place in header.items() if name != "__metadata__"}, kept, content[end:]


def compare_metrics(report: Report, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the points of every metric, except wall-clock metrics.

    A point is (step, value). Timestamps are ignored.
    """
    points = [_points(record) for record in (old, new)]
    for name in sorted(points[0].keys() | points[1].keys()):
        if name not in points[0]:
            report.note_field(f"new metric {name}", old["name"])
            continue
        was, now = points[0][name], points[1].get(name, [])
        same = was == now
        report.compare("metric", old["name"], same, f"metric {name} was {_difference(was, now)}")
        report.equal["point"] += len(was) if same else 0


def _points(record: Mapping[str, Any]) -> dict[str, list[tuple[int, Any]]]:
    """Return {metric name: [(step, value), …]}, without wall-clock metrics."""
    points: dict[str, list[tuple[int, Any]]] = {}
    for name, value, step, _ in record["metrics"]:
        if not any(fnmatch(name, pattern) for pattern in WALL_CLOCK_METRICS):
            points.setdefault(name, []).append((step, value))
    return points


def _difference(was: list[tuple[int, Any]], now: list[tuple[int, Any]]) -> str:
    """Describe the first different point, or the different numbers of points."""
    if len(was) != len(now):
        return f"of {len(was)} points, now of {len(now)}"
    for old, new in zip(was, now, strict=True):
        if old != new:
            return f"{old[1]!r} at step {old[0]}, now {new[1]!r} at step {new[0]}"
    return "equal"


def compare_fields(report: Report, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare all other record fields.

    Include config.json if it differs from the record's config.
    """
    was, now = _fields(old), _fields(new)
    for name in sorted(was.keys() | now.keys()):
        if name not in was:
            report.note_field(f"new {name} = {now[name]!r}", old["name"])
        elif name not in now:
            report.note_field(f"gone {name} = {was[name]!r}", old["name"])
        elif was[name] != now[name]:
            report.note_field(f"different {name}: {was[name]!r}, now {now[name]!r}", old["name"])
        else:
            report.equal["field"] += 1


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compared values of a record by their dotted names."""
    rest = {name: value for name, value in record.items() if name not in ("directory", "metrics")}
    own = json.loads((record["directory"] / "config.json").read_text())
    if own != record["config"]:
        rest["config.json"] = own
    found = dict(_flat(rest))
    return {name: value for name, value in found.items() if not any(_within(name, each) for each in NOT_COMPARED)}


def _within(name: str, outer: str) -> bool:
    """Return whether a dotted name is `outer` or lies below it."""
    return name == outer or name.startswith(f"{outer}.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested dicts and yield (dotted name, value)."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def main(arguments: TwoVersions) -> int:
    """Make and compare both stores; return the exit code."""
    place = Path(tempfile.mkdtemp(prefix="same-bits-"))
    try:
        report = compare(*make_stores(arguments.rev, place))
    except NoAnswerError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 2
    finally:
        if arguments.keep:
            print(f"stores and logs are kept in {place}")
        else:
            shutil.rmtree(place)
    print(*report.lines(), report.verdict(), sep="\n")
    return 1 if report.moved or report.fields_changed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a terminal may lack characters
    sys.exit(main(tyro.cli(TwoVersions, description=__doc__)))
