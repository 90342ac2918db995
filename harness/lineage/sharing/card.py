"""The model card of an exported run: README.md with YAML front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.common.escape import code_block, for_markdown
from harness.common.optional import PROJECT
from harness.config.own_loop import OWN_LOOP
from harness.lineage.bundle import MODEL, NODES, BundledRun
from harness.lineage.nodes.local_files import CONFIG
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK
from harness.lineage.sharing.description import SharedRun
from harness.lineage.sharing.licences import front_matter, sentence
from harness.models.network import SOURCE_FILE


def model_card(shared: SharedRun, items: Sequence[BundledRun], licence: str, repo: str = "") -> str:
    """Return the content of README.md.

    Args:
        shared: The exported run.
        items: All runs of the directory, each after its parents.
        licence: An identifier of the Hub, or any name.
        repo: USER/NAME on the Hub, for the commands. "": the directory is shared in another way.
    """
    # JSON values are valid YAML, and quoting them needs no YAML library.
    entries = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in _entries(shared, licence))
    parts = [
        f"---\n{entries}\n---",
        f"# {for_markdown(shared.record.name)}",
        _summary(shared),
        _facts(shared, licence),
        _use(shared, repo),
        _images(shared),
        _lineage(shared, items, repo),
        _files(shared),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _entries(shared: SharedRun, licence: str) -> list[tuple[str, Any]]:
    """Return the entries of the front matter."""
    # Phase: licence, library and tags.
    tags, error = shared.record.tags, shared.test_error_percent
    words = ["signed-tickets", "lottery-ticket", "pruning", "sparse", *([tags["method"]] if "method" in tags else [])]
    entries: list[tuple[str, Any]] = [*front_matter(licence).items(), ("library_name", "signed-tickets")]
    if shared.network_known:
        entries.append(("pipeline_tag", "image-classification"))
    entries.append(("tags", words))

    # Phase: the result. The Hub wants an accuracy between 0 and 1.
    if error is not None and error == error:
        name = tags.get("data", "unknown")
        metrics = [
            {"type": "accuracy", "name": "Test accuracy", "value": round(1 - error / 100, 6)},
            {"type": "error_percent", "name": "Test error in %", "value": error},
        ]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": "test"},
            "metrics": metrics,
        }
        entries.append(("model-index", [{"name": shared.record.name, "results": [result]}]))
    return entries


def _summary(shared: SharedRun) -> str:
    """Return the paragraph that says what the run is."""
    tags, density = shared.record.tags, shared.density
    network = f"`{shared.network}`" if shared.network != "network" else "A network"
    data = f" on {for_markdown(tags['data'])}" if "data" in tags else ""
    share = (
        ", dense" if density == 1 else f", with {density:.1%} of its prunable weights" if density is not None else ""
    )
    mask = " `signed_mask.safetensors` has the kept positions and the sign of every parameter." * (
        SIGNED_MASK in shared.record.files
    )
    if shared.record.kind == "level":
        level, pruned = ("level", ", without pruning") if density == 1 else ("pruning level", "")
        what = f"a {level} of the method {for_markdown(tags.get('method', '?'))}{pruned}"
    else:
        what = f"a final training of kind {for_markdown(tags.get('kind_of_training', '?'))}"
    return f"{network}{data}{share}: {what}.{mask}"


def _facts(shared: SharedRun, licence: str) -> str:
    """Return the table of facts, and the command."""
    # Phase: the rows whose fact is known.
    record, tags, spec = shared.record, shared.record.tags, shared.spec
    error, density, shape = shared.test_error_percent, shared.density, shared.image_shape
    code = f"commit `{record.code.get('commit', '?')}`"
    code += " with changes" if record.code.get("dirty") == "true" else ""
    versions = ", ".join(f"{name} {record.code[name]}" for name in ("python", "torch", "mlflow") if name in record.code)
    seeds = [f"{name} {tags[name]}" for name in ("init_seed", "sgd_seed") if name in tags]
    rows = {
        "density": f"{density:.6f}" if density is not None else "unknown",
        "test error": f"{error:g} %" if error is not None else "unknown",
        "method": tags.get("method"),
        "level": tags.get("level"),
        "kind of training": tags.get("kind_of_training"),
        "network": shared.network if shared.network_known else None,
        "library of the network": shared.determinants["model"].get("library") if shared.network_known else None,
        "classes": str(spec["num_classes"]) if "num_classes" in spec else None,
        "data": tags.get("data"),
        "seeds": ", ".join(seeds) or None,
    }
    lines = [f"| {name} | {for_markdown(value)} |" for name, value in rows.items() if value]
    lines += ["| images | {} × {} × {} (channels × height × width) |".format(*shape)] if shape else []
    lines += [f"| made | {shared.made_at} |", f"| licence | {for_markdown(sentence(licence))} |"]
    lines += [f"| data digest | `{tags['data_digest']}` |"] if "data_digest" in tags else []
    lines += [f"| code | {code}{f', {for_markdown(versions)}' if versions else ''} |", f"| key | `{record.key}` |"]
    lines += [f"| MLflow run IDs | {', '.join(f'`{one}`' for one in shared.run_ids)} |"] if shared.run_ids else []
    table = "\n".join(["| | |", "|---|---|", *lines])
    return f"{table}\n\nThe command that made it:\n\n{code_block(shared.command)}" if shared.command else table


def _use(shared: SharedRun, repo: str) -> str:
    """Return the section with the commands."""
    # Phase: the Python lines.
    named = json.dumps(f"hf://{repo}" if repo else "THIS_DIRECTORY")
    lines = ["import harness", ""]
    if SIGNED_MASK in shared.record.files:
        lines += [f"mask = harness.load_signed_mask({named})", "mask.apply_(model)  # your own initialised network"]
    model = shared.determinants["model"] if shared.network_known else {}
    if shared.network_known:
        trusted = ", trust_code=True" if "sha256" in model else ""
        lines.append(f"network = harness.load_network({named}{trusted})")
    extras = [*(["hub"] if repo else []), *(["networks"] if "library" in model else [])]
    package = f"'{PROJECT}[{','.join(extras)}]'" if extras else PROJECT
    code = code_block("\n".join(lines)).replace("```\n", "```python\n", 1)
    parts = ["## Use", code_block(f"pip install {package}"), code]

    # Phase: the network of a loop of one's own, or of a file.
    if not shared.network_known:
        load = f"harness.load_network({named}, model=model)"
        by = " A `SignPruner` in a training loop of its own made this run." * (
            shared.determinants.get("made_by") == OWN_LOOP
        )
        parts.append(f"The network is not recorded.{by} Build it yourself, and fill it with `{load}`.")
    elif "sha256" in model:
        path = f"{NODES}/{shared.record.kind}-{shared.record.key[:16]}/{SOURCE_FILE}"
        parts.append(f"The network is defined in a Python file, `{path}`. Read it before you trust it.")
    parts.append(f'Without this library, `{MODEL}` is a state dict: `safetensors.torch.load_file("{MODEL}")`.')
    return "\n\n".join(parts)


def _images(shared: SharedRun) -> str:
    """Return the section about the network's input; "" if it is unknown."""
    spec = shared.spec
    if not {"mean", "std"} <= spec.keys():
        return ""
    mean, std = (", ".join(f"{value:g}" for value in spec[name]) for name in ("mean", "std"))
    return (
        "## Images\n\nThe network takes float32 images N × channels × height × width and returns logits. Scale pixels "
        f"to 0..1, subtract the mean ({mean}) and divide by the standard deviation ({std}) of each channel."
    )


def _lineage(shared: SharedRun, items: Sequence[BundledRun], repo: str) -> str:
    """Return the section about ancestors and checks."""
    rows = []
    relations = {parent.key: parent.relation for parent in shared.record.parents}
    for item in items:
        relation = "this run" if item.key == shared.record.key else relations.get(item.key, "ancestor")
        rows.append(f"| {for_markdown(item.name)} | {item.kind} | {relation} | `{item.record_sha256}` |")
    first = f"tickets pull {repo}" if repo else "tickets lineage import THIS_DIRECTORY"
    commands = ["sha256sum -c --quiet SHA256SUMS", first, f"tickets lineage verify {shared.record.key[:16]}"]
    table = "\n".join(["| run | kind | relation | SHA-256 of record.json |", "|---|---|---|---|", *rows])
    return (
        "## Lineage\n\nEvery run has its record, settings and signed mask in `nodes/`. A record lists seeds, code, "
        f"metrics, parents, and the SHA-256 of each file.\n\n{table}\n\n"
        "Check the files, import the runs into your own store, and verify them:\n\n"
        f"{code_block(chr(10).join(commands))}"
    )


def _files(shared: SharedRun) -> str:
    """Return the section that lists the files at the top."""
    zeros = "; pruned weights are zeros" if shared.density != 1 else ""
    rows = [(MODEL, f"parameters and buffers{zeros}", shared.record.files[CHECKPOINT])]
    if SIGNED_MASK in shared.record.files:
        rows.append((SIGNED_MASK, "kept positions and signs", shared.record.files[SIGNED_MASK]))
    lines = [f"| `{name}` | {what} | `{digest}` |" for name, what, digest in rows]
    described = (
        "network, classes, image size, mean and standard deviation" if shared.network_known else "the facts above"
    )
    lines += [f"| `{CONFIG}` | {described} | |", f"| `bundle.json`, `{NODES}/` | the lineage | |"]
    lines += ["| `MLmodel` | for `mlflow.pyfunc.load_model` | |"] if shared.network_known else []
    return "\n".join(
        ["## Files", "", "| file | content | SHA-256 |", "|---|---|---|", *lines, "", "No file is a pickle."]
    )
