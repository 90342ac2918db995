"""Check the addresses of delivered runs in MLflow, and repair them.

An address is anything that names a run or its files: run IDs, `models:/` URIs, the run that another is nested under,
input models, links in descriptions. People can change all of them in MLflow. `verify` reports each wrong address, and
`sync` repairs it. The rules are only here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.files import read_json
from harness.lineage.mlmodel import MLMODEL, has_mlmodel
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import (
    DETERMINANTS,
    RECORD,
    absent_files,
    check_files,
    parse_record,
    read_record,
)
from harness.lineage.nodes.record import SIGNED_MASK, WITHOUT_MODEL
from harness.lineage.tracking.delivery import Delivery
from harness.lineage.tracking.description import LAYERS, NOTE_TAG, PICTURE, is_own_note, note_tags
from harness.lineage.tracking.overview import DRAWN_TAG
from harness.lineage.tracking.server import (
    FAMILIES_TAG,
    KEY_TAG,
    PARENT_RUNS_TAG,
    ROOT_TAG,
    MissingFileError,
    outputs,
    root_of,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

_ABOVE_TAG = "mlflow.parentRunId"
_COPIES_TAG = "mlflow.loggedArtifacts"
_RUN_ID = re.compile("[0-9a-f]{32}")
_LINK = re.compile(r"(#/experiments/)\w+(/runs/)([0-9a-f]{32})")


@dataclass(frozen=True)
class WrongAddress:
    """An address that names the wrong thing, or nothing. `repair` is None if it needs a local run that is missing."""

    what: str
    repair: Callable[[], object] | None


class Addresses:
    """The addresses of all finished runs of one server."""

    def __init__(self, delivery: Delivery, summaries: Iterable[RunSummary]) -> None:
        """Collect the runs.

        Args:
            delivery: Delivers to the server.
            summaries: Runs in MLflow. Missing relatives are looked up.
        """
        self.delivery, self.server = delivery, delivery.server
        self.delivery.registry.forget()
        self._runs: dict[str, Run | None] = {}
        self._ids: dict[str, list[str]] = defaultdict(list)
        self._now: dict[str, str] = {}
        finished = [node for node in summaries if node.status == "FINISHED"]
        for node in sorted(finished, key=lambda node: (node.started_ms, str(node.run_id))):
            self._ids[node.key].append(str(node.run_id))
            self._now |= dict.fromkeys(node.origin_run_ids, self._ids[node.key][0])

    def run_with(self, key: str) -> Run | None:
        """Return the oldest finished run with this key, from a cache."""
        if key not in self._runs:
            known = self._ids.get(key)
            run = self.server.get_run(known[0]) if known else self.server.run_with(key)
            self._runs[key] = run if run is not None and run.info.status == "FINISHED" else None
        return self._runs[key]

    def _summary_with(self, key: str) -> RunSummary | None:
        run = self.run_with(key)
        return None if run is None else self.delivery.summary(run)

    def wrong(self, key: str, directory: Path | None, *, missing: bool = True) -> Iterator[WrongAddress]:
        """Yield the wrong addresses of a finished run.

        Args:
            key: Key of the run.
            directory: The intact local run, or None.
            missing: Look for missing files, too.
        """
        # Phase: the run itself
        run = self.run_with(key)
        if run is None:
            run_id = self.delivery.remembered(directory) if directory is not None else None
            old = self.server.get_run(run_id) if run_id is not None else None
            if run_id is not None and old is None:
                # Delivery makes it again, and the new run remembers this ID.
                yield WrongAddress(f"its MLflow run {run_id} was deleted, alone or with its experiment", None)
            elif old is not None and old.info.status == "FINISHED":  # delivery sets the key again
                found = old.data.tags.get(KEY_TAG, "none")
                yield WrongAddress(f"its MLflow run {run_id} has the key {found}, not {key}", None)
            return
        if others := self._ids.get(key, [])[1:]:
            yield WrongAddress(f"MLflow has more finished runs with its key: {', '.join(others)}", None)

        if directory is not None and (lost := self.delivery.lost_ids(run, directory)):
            repair = partial(self.delivery.keep_ids, run, directory, read_record(directory))
            yield WrongAddress(f"its earlier run ID {', '.join(lost)} does not find it", repair)

        # Phase: its relatives and its files
        node = self.delivery.summary(run)
        yield from self._nesting(run, node)
        yield from self._parents(run, node)
        yield from self._files(run, node, directory, missing=missing)
        yield from self._description(run)

    def _nesting(self, run: Run, node: RunSummary) -> Iterator[WrongAddress]:
        """Check the run that this one is nested under, and the root."""
        above = self.run_with(node.nest_key) if node.nest_key is not None else None
        if node.nest_key is not None and above is None:
            return  # `verify` reports missing parents
        expected = {_ABOVE_TAG: above.info.run_id if above is not None else None}
        if (root := root_of(node, self._summary_with)) is not None:
            expected[ROOT_TAG] = root
        for name, value in expected.items():
            found = run.data.tags.get(name)
            if found == value:
                continue
            what = "nested under run" if name == _ABOVE_TAG else "in the tree of"
            repair = partial(self.server.client().delete_tag, run.info.run_id, name)
            if value is not None:
                repair = partial(self.server.set_tags, run.info.run_id, {name: value})
            yield WrongAddress(f"it is {what} {found or 'none'}, not {value or 'none'}", repair)

    def _parents(self, run: Run, node: RunSummary) -> Iterator[WrongAddress]:
        """Check the links to the parents: run IDs and searches in tags, and the parents' logged models as inputs."""
        # Phase: the tags
        used = dict.fromkeys(parent.key for parent in node.parents)
        used |= {node.nest_key: None} if node.nest_key is not None else {}
        found = {key: one for key in used if (one := self.run_with(key)) is not None}
        if len(found) < len(used):
            return  # `verify` reports missing parents
        tags = self.delivery.family_tags(node, found)
        ids, given = tags.get(PARENT_RUNS_TAG, ""), " ".join(node.parent_run_ids)
        if given != ids:
            what = f"it links to the parents {given or 'none'}, which are {ids or 'none'}"
            if not given:
                what += "; earlier versions delivered none, and `sync` adds them"
            yield WrongAddress(what, partial(self.server.set_tags, run.info.run_id, {PARENT_RUNS_TAG: ids}))
        families, named = tags.get(FAMILIES_TAG, ""), run.data.tags.get(FAMILIES_TAG, "")
        if set(families.split()) - set(named.split()):
            what = f"it names the searches {named or 'none'} of its relatives, which are {families}"
            yield WrongAddress(what, partial(self.server.set_tags, run.info.run_id, {FAMILIES_TAG: families}))

        # Phase: the inputs
        found = {key: one for key, one in found.items() if any(parent.key == key for parent in node.parents)}
        inputs = {given.model_id for given in run.inputs.model_inputs} if run.inputs else set()
        wanted = {model_id for one in found.values() for model_id in self.delivery.models_of(one)}
        if wanted - inputs:
            what = f"its inputs lack the models of its parents: {', '.join(sorted(wanted - inputs))}"
            yield WrongAddress(what, partial(self.delivery.log_inputs, run.info.run_id, node, found))

    def _files(self, run: Run, node: RunSummary, directory: Path | None, *, missing: bool) -> Iterator[WrongAddress]:
        """Check the logged model, its files, its version and its alias."""
        # Phase: the logged model
        again = partial(self._send_again, run, directory) if directory is not None else None
        model = self.server.model_of(outputs(run)) if node.kind not in WITHOUT_MODEL else None
        if model is None and node.kind not in WITHOUT_MODEL:
            yield WrongAddress("its logged model was deleted", again)
            return

        # Phase: its files; `verify` checks their digests instead
        also = (MLMODEL,) if model is not None and has_mlmodel(node.kind, node.files) else ()
        names = self.server.missing_files(run, also) if missing else []
        if MLMODEL in names and model is not None:
            names.remove(MLMODEL)
            what = f"it has no {MLMODEL}, so mlflow.pyfunc does not load it; earlier versions delivered none"
            yield WrongAddress(what, partial(self._send_mlmodel, run, model))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield WrongAddress(f"{', '.join(names[:3])}{more} {'are' if names[1:] else 'is'} missing", again)

        # Phase: copies beside the logged model. Earlier versions made none.
        if node.kind == "level" and _COPIES_TAG in run.data.tags:
            lost = [name for name in (LAYERS, SIGNED_MASK) if name in node.files]
            if lost := [name for name in lost if not self.server.has_own_file(run, name)]:
                repair = partial(self._send_own, run, directory) if directory is not None else None
                yield WrongAddress(f"its own artifacts lack {' and '.join(lost)}", repair)
        if node.kind == "search" and DRAWN_TAG in run.data.tags and not self.server.has_own_file(run, PICTURE):
            # The graph is drawn again where this tag is missing.
            repair = partial(self.server.client().delete_tag, run.info.run_id, DRAWN_TAG)
            yield WrongAddress("its graph was deleted", repair)

        # Phase: the registered model
        if node.kind == "level" and model is not None:
            fault = self.delivery.registry.fault(model, node)
            if fault is not None:
                yield WrongAddress(fault, partial(self.delivery.registry.register, model, node))

    def _send_own(self, run: Run, directory: Path) -> None:
        record = read_record(directory)
        check_files(directory, record)
        self.delivery.send_own_files(run, directory, record)

    def _send_mlmodel(self, run: Run, model: LoggedModel) -> None:
        """Write the MLmodel of a run whose local directory may be gone."""
        with self.server.artifact(run, RECORD) as path:
            record = parse_record(path)
        with self.server.artifact(run, DETERMINANTS) as path:
            determinants = read_json(path)
        self.delivery.send_mlmodel(run, model, record, determinants if isinstance(determinants, dict) else {})

    def _send_again(self, run: Run, directory: Path) -> None:
        """Upload the files of a local run once more. Files that are altered or deleted locally raise ValueError."""
        record = read_record(directory)
        check_files(directory, record)
        if gone := absent_files(directory, record):
            raise MissingFileError(f"{record.name}: {', '.join(gone)} is missing in MLflow, and was deleted locally")
        model = self.delivery.send_files(run, directory, record, again=True)
        if record.kind == "level" and model is not None:
            self.delivery.registry.register(model, self.delivery.summary(run))
        present = self.server.get_run(run.info.run_id)
        if present is not None and (names := self.server.missing_files(present)):
            raise MissingFileError(f"something else has the place of {', '.join(names)}: remove it")
        self._runs.pop(record.key, None)  # read its new model when the children are checked

    def _description(self, run: Run) -> Iterator[WrongAddress]:
        """Check the links of the description. Dead IDs of runs that were delivered again have a present one."""
        note = run.data.tags.get(NOTE_TAG, "")
        dead = sorted({one for one in _RUN_ID.findall(note) if one in self._now and self._now[one] != one})
        if dead:
            what = f"its description links to the deleted run {', '.join(dead)}"
            yield WrongAddress(what, partial(self._replace_links, run, note))

    def _replace_links(self, run: Run, note: str) -> None:
        places = {run_id: self.server.get_run(run_id) for run_id in set(self._now.values())}
        experiments = {run_id: str(one.info.experiment_id) for run_id, one in places.items() if one is not None}

        def link(match: re.Match[str]) -> str:
            present = self._now.get(match[3], match[3])
            return f"{match[1]}{experiments[present]}{match[2]}{present}" if present in experiments else match[0]

        changed = _RUN_ID.sub(lambda match: self._now.get(match[0], match[0]), _LINK.sub(link, note))
        own = is_own_note(run.data.tags)
        self.server.set_tags(run.info.run_id, note_tags(changed) if own else {NOTE_TAG: changed})


def repair_all(addresses: Addresses, directories: Mapping[str, Path | None]) -> tuple[list[str], list[str]]:
    """Repair the wrong addresses of these runs, parents first.

    Args:
        addresses: The server's addresses.
        directories: {key: local run, or None}, parents before children.

    Returns:
        One line for each repaired address, and for each that cannot be repaired.
    """
    repaired, left = [], []
    for key, directory in directories.items():
        run = addresses.run_with(key)
        if run is None:
            continue
        for wrong in list(addresses.wrong(key, directory)):
            line = f"{run.info.run_name!r} (run {run.info.run_id}): {wrong.what}"
            if wrong.repair is None:
                left.append(f"{line}; only a machine with its local run can repair this")
                continue
            try:
                wrong.repair()
                repaired.append(line)
            except (ValueError, LookupError) as error:
                left.append(f"{line}; {error}")
    return repaired, left
