"""Descriptions of runs in MLflow, as Markdown. MLflow folds them after four lines, so links come first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.common.escape import code_block, for_markdown
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK, THETA_INIT, LineageRecord, shown_barrier

NOTE_TAG = "mlflow.note.content"
NOTE_DIGEST_TAG = "harness.note_sha256"  # of the description as the harness wrote it, to detect edits by a person
NOTE_CHARACTERS = 8000  # MLflow cuts longer descriptions silently
PICTURE = "lineage/graph.svg"
PAGE = "lineage/index.html"
LAYERS = "layers.json"
WORKFLOW = "workflowType=machine_learning"  # without it, MLflow 3.17 opens its GenAI pages

MODEL_NAME = "network"  # the same for every run, because runs:/<run ID>/network/<file> is an address

_MADE = "**Made from it** "
_MOST_CHILDREN = 12
_COMMAND_CHARACTERS = 80
_DIGITS = 24
_USED_FILES = {
    "pruned-from": (CHECKPOINT, SIGNED_MASK),
    "trained-from": (CHECKPOINT, SIGNED_MASK),
    "masked-by": (SIGNED_MASK,),
    "initialised-from": (THETA_INIT,),
    "compared": (CHECKPOINT,),
    "reported": (),
}


@dataclass(frozen=True)
class Relative:
    """A parent or child of a run, and the relation between the two."""

    node: RunSummary
    relation: str


def run_address(node: RunSummary, artifact: str = "") -> str | None:
    """Return the address of a run's page, relative to the root of the MLflow UI.

    Args:
        node: The run.
        artifact: Path of an artifact to open. "" opens the overview.

    Returns:
        The address, or None if MLflow does not have the run.
    """
    if node.run_id is None or not re.fullmatch("[0-9a-zA-Z]+", f"{node.experiment_id}{node.run_id}"):
        return None
    path = f"/artifacts/{artifact}" if artifact else ""
    return f"#/experiments/{node.experiment_id}/runs/{node.run_id}{path}?{WORKFLOW}"


def link(node: RunSummary) -> str:
    """Return a run's name as a Markdown link to its page."""
    address = run_address(node)
    return f"[{for_markdown(node.name)}]({address})" if address else for_markdown(node.name)


def describe(node: RunSummary, parents: Sequence[Relative]) -> str:
    """Return the description of a new run. `with_children` adds its children later."""
    came = ", ".join(f"{link(one.node)} ({one.relation})" for one in parents) or "nothing (it has no parents)"
    return _fit([f"**From** {came}", _MADE + "nothing yet", _sentence(node), _files(node, parents), _launch(node)])


def describe_model(name: str, run_id: str, files: Collection[str]) -> str:
    """Return the description of a run's logged model: the run's name, and the lines that load the model.

    Args:
        name: Name of the run.
        run_id: ID of the run.
        files: Names of the model's files.
    """
    if CHECKPOINT in files:
        lines = ["import harness", "", f'network = harness.load_network("{run_id}")']
        lines += [f'signed_mask = harness.load_signed_mask("{run_id}")'] if SIGNED_MASK in files else []
    else:  # the initial parameters of a search
        loaded = f'download_artifacts("runs:/{run_id}/{MODEL_NAME}/{THETA_INIT}")'
        lines = ["from harness.checkpoint import Checkpoint", "from mlflow.artifacts import download_artifacts"]
        lines += ["", f"theta_init = Checkpoint.load({loaded})"]
    return f"**{for_markdown(name)}**\n\n{code_block(chr(10).join(lines))}"


def with_children(note: str, children: Sequence[Relative]) -> str:
    """Return a description with its line of children replaced. Without such a line it stays as it is."""
    links = [f"{link(one.node)} ({one.relation})" for one in children]
    shown = links[:_MOST_CHILDREN] + ([f"{len(links) - _MOST_CHILDREN} more"] if len(links) > _MOST_CHILDREN else [])
    line = _MADE + (", ".join(shown) or "nothing yet")
    lines = [line if old.startswith(_MADE) else old for old in note.split("\n")]
    changed = "\n".join(lines)
    return changed if len(changed) <= NOTE_CHARACTERS else note


def note_tags(note: str) -> dict[str, str]:
    """Return the tags of a description: its text and its digest."""
    return {NOTE_TAG: note, NOTE_DIGEST_TAG: hashlib.sha256(note.encode()).hexdigest()}


def is_own_note(tags: Mapping[str, str]) -> bool:
    """Return whether the harness wrote the current description, and no person edited it."""
    return NOTE_TAG in tags and note_tags(tags[NOTE_TAG]).items() <= tags.items()


def relation_to(child: RunSummary, key: str) -> str:
    """Return the relations of a child to its parent with this key, separated by commas."""
    return ", ".join(dict.fromkeys(parent.relation for parent in child.parents if parent.key == key))


def describe_search(root: RunSummary, family: Sequence[RunSummary], *, has_picture: bool) -> str:
    """Return the description of a search: links to its levels, the graph, and a table of all runs."""
    # Phase: link the levels.
    own = [node for node in family if node.kind == "level" and node.nest_key == root.key]
    levels = sorted(own, key=lambda node: node.tags.get("level", ""))
    others = [node for node in family if node.kind != "search" and node not in own]
    numbers = " ".join(_short_link(node, f"L{node.tags.get('level', '?')}") for node in levels) or "no level yet"
    parts = [f"**Levels** {numbers}", _sentence(root)]

    # Phase: embed the graph.
    if has_picture:
        page = run_address(root, PAGE)
        parts.append(
            f"![lineage graph](get-artifact?path={PICTURE}&run_uuid={root.run_id})\n\n"
            f"Interactive graph: download [{PAGE}]({page}), or run `tickets lineage page`."
        )

    # Phase: fill the rest of the room with the table.
    launch = _launch(root)
    room = NOTE_CHARACTERS - sum(len(part) + 2 for part in [*parts, launch]) - 200
    return _fit([*parts, _family_table([*levels, *others], room), launch])


def _fit(parts: Sequence[str]) -> str:
    """Return the parts as paragraphs. Parts that do not fit MLflow's limit are left out."""
    text = ""
    for part in parts:
        if part and len(text) + len(part) + 2 <= NOTE_CHARACTERS:
            text += ("\n\n" if text else "") + part
    return text


def command_of(record: LineageRecord) -> str:
    """Return the shell command that launched a run; "" if it was not recorded."""
    import shlex

    command = record.config.get("command")
    if isinstance(command, str):
        return command
    argv = record.config.get("argv")
    if isinstance(argv, list) and argv:
        return shlex.join(["python", *(str(word) for word in argv)])
    return ""


def hardware_of(record: LineageRecord) -> str:
    """Return the machine in one line, e.g. 'AMD EPYC, AVX2, 2 cores, 24 GiB, 1 × NVIDIA H100'.

    The instruction set is given for a run on the CPU, where it decides the bits.
    """
    found, launch = record.config.get("hardware"), record.config.get("launch")
    if not isinstance(found, dict):
        return ""
    gpus = [str(name) for name in found.get("gpus", [])]
    device = str(launch.get("device", "")) if isinstance(launch, dict) else ""
    instructions = [device.removeprefix("cpu ")] if device.startswith("cpu ") else []
    words = [str(found.get("cpu", "?")), *instructions]
    words += [f"{found.get('cores', '?')} cores", f"{found.get('memory_gib', '?')} GiB"]
    return ", ".join([*words, *(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus))])


def precision_of(record: LineageRecord) -> str:
    """Return the precision of a run in words, e.g. 'float32, convolutions in TF32' or 'bf16 mixed precision'."""
    search, hardware, launch = (record.config.get(name) for name in ("search", "hardware", "launch"))
    if not isinstance(search, dict):
        return ""
    mixed, matmul = search.get("precision", "no"), search.get("float32_matmul_precision", "highest")
    dtype = str(launch.get("dtype", "float32")) if isinstance(launch, dict) else "float32"
    words = [dtype if mixed == "no" else f"{mixed} mixed precision"]
    cuda = hardware.get("cuda", {}) if isinstance(hardware, dict) else {}
    allowed = cuda.get("tf32_supported") and cuda.get("cudnn_allow_tf32")
    if words == ["float32"] and allowed and cuda.get("tf32_override") != "0":
        words.append("convolutions in TF32")
    words += [] if matmul == "highest" else [f"matrix products {matmul}"]
    words += ["SyncBatchNorm"] if search.get("sync_batchnorm") else []
    compiled = search.get("compile", "no")
    return ", ".join(words if compiled == "no" else [*words, f"compiled ({compiled})"])


def _sentence(node: RunSummary) -> str:
    """Return one sentence with the subject, results and seeds of a run."""
    # Phase: words that several kinds share.
    tags, metrics = node.tags, node.metrics
    network, data = for_markdown(tags.get("network", tags.get("model", "?"))), for_markdown(tags.get("data", "?"))
    method = for_markdown(tags.get("method", "?"))
    seeds = ", ".join(f"{name} {for_markdown(tags[name])}" for name in ("init_seed", "sgd_seed") if name in tags)
    error = f"test error **{metrics['test_error_percent']:.2f} %**" if "test_error_percent" in metrics else ""
    left = f"{100 * float(metrics['density']):.2f} % of the prunable weights remain" if "density" in metrics else ""

    # Phase: the subject, by kind.
    if node.kind == "search":
        subject = f"Search with **{method}** for winning signs in {network} on {data}"
        left = f"deepest level: {left}" if left else ""
    elif node.kind == "level":
        subject = f"Level {for_markdown(tags.get('level', '?'))} of a search with **{method}** in {network} on {data}"
    elif node.kind == "training":
        used = f" of a ticket of {method}" if "method" in tags else ""
        subject = f"Final training **{for_markdown(tags.get('kind_of_training', '?'))}**{used}, {network} on {data}"
    elif node.kind == "report":
        subject = f"Report on {len(node.parents)} runs"
    else:
        subject = f"Comparison **{for_markdown(tags.get('question', '?'))}** of two trainings of {network} on {data}"
        if (barrier := shown_barrier(tags, metrics)) is not None:
            points, is_difference = barrier
            what = "errors differ by **{:.2f}** points" if is_difference else "barrier **{:.2f}** points above the line"
            error = what.format(points)
    ways = "; ".join(map(" ".join, node.other_ways.items()))
    return "; ".join(part for part in (subject, left, error, seeds, ways) if part) + "."


def _files(node: RunSummary, parents: Sequence[Relative]) -> str:
    rows = []
    for one in parents:
        names = _USED_FILES.get(one.relation, (CHECKPOINT,))
        for name in (name for name in names if name in one.node.files):
            rows.append(_row(f"used ({one.relation})", link(one.node), *_file(name, one.node.files)))
    if "data_digest" in node.tags:
        data = f"data {for_markdown(node.tags.get('data', ''))}"
        rows.append(_row("used", data, "content", _digest(node.tags["data_digest"])))
    for name in sorted(node.files):
        rows.append(_row("made", "", *_file(name, node.files)))
    return "\n".join([*_head("", "of", "file", "SHA-256"), *rows])


def _row(*cells: str) -> str:
    """Return a row of a table, with spaces at the end of cells, since MLflow adds none."""
    return f"| {'&emsp; | '.join(cell.replace(' ', '&nbsp;') for cell in cells)} |"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), "|:--" * len(titles) + "|"]


def _file(name: str, files: Mapping[str, str]) -> tuple[str, str]:
    return for_markdown(name), _digest(files[name])


def _digest(text: str) -> str:
    """Return a digest in Markdown, shortened to fit MLflow's page. Tags hold all digits."""
    return f"`{_hex(text)[:_DIGITS]}…`"


def _hex(text: str) -> str:
    return re.sub("[^0-9a-f]", "", text)[:64]


def _launch(node: RunSummary) -> str:
    """Return the launch command, code and hardware of a run, and the line that loads its mask."""
    tags = node.tags
    parts = []
    if "launch.command" in tags:
        parts.append(f"Launched as\n\n{code_block(_wrapped(tags['launch.command']))}")
    commit, dirty = tags.get("code.commit", "unknown"), tags.get("code.dirty", "unknown")
    state = {"true": "**with uncommitted changes**", "false": "clean"}.get(dirty, "state unknown")
    hardware = f" Hardware: {for_markdown(tags['launch.hardware'])}." if "launch.hardware" in tags else ""
    parts.append(f"Code at commit `{re.sub('[^0-9a-z]', '', commit)}`, {state}.{hardware}")
    if SIGNED_MASK in node.files and node.run_id:
        parts.append(
            code_block(f'from harness import load_signed_mask\n\nmask = load_signed_mask("{_hex(node.run_id)}")')
        )
    return "\n\n".join(parts)


def _wrapped(command: str) -> str:
    """Return a command wrapped to the width of MLflow's page. A command that shlex changes stays as it is."""
    import shlex

    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if shlex.join(words) != command:
        return command
    lines = [""]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > _COMMAND_CHARACTERS and lines[-1]:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _short_link(node: RunSummary, text: str) -> str:
    address = run_address(node)
    return f"[{for_markdown(text)}]({address})" if address else for_markdown(text)


def _family_table(nodes: Sequence[RunSummary], room: int) -> str:
    """Return a table of as many runs as fit into `room` characters. The HTML page has all."""
    head = "\n".join(_head("run", "relation", "density", "result"))
    rows: list[str] = []
    for number, node in enumerate(nodes):
        came = ", ".join(dict.fromkeys(parent.relation for parent in node.parents))
        row = _row(link(node), came, _density(node), _result(node))
        if len(head) + sum(len(row) + 1 for row in rows) + len(row) > room:
            rows.append(f"| … and {len(nodes) - number} more | | | |")
            break
        rows.append(row)
    return "\n".join([head, *rows]) if rows else ""


def _density(node: RunSummary) -> str:
    return f"{node.metrics['density']:.3f}" if "density" in node.metrics else ""


def _result(node: RunSummary) -> str:
    if (barrier := shown_barrier(node.tags, node.metrics)) is not None:
        return f"{'difference' if barrier[1] else 'barrier'} {barrier[0]:.2f}"
    return f"{node.metrics['test_error_percent']:.2f} %" if "test_error_percent" in node.metrics else ""
