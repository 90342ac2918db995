"""Export a run: a directory with its lineage, a repository on the Hugging Face Hub, ONNX, or pruned PyTorch.

$ python tools/export.py RUN --to dir --out ticket
$ python tools/export.py RUN --to hub --repo USER/NAME
$ python tools/export.py RUN --to onnx --out ticket.onnx

RUN is a level or a final training: its run ID or key, or a unique prefix of either.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from harness.cli.errors import clear_errors
from harness.cli.lineage.store_options import StoreOptions, Where
from harness.cli.parser import parse_command
from harness.common.files import make_parent
from harness.common.logging import show_messages
from harness.lineage.sharing.licences import UNKNOWN

if TYPE_CHECKING:
    from harness.lineage.nodes.graph import RunSummary
    from harness.lineage.sharing.description import SharedRun
    from harness.lineage.sharing.export import Exported
    from harness.lineage.store import LineageStore

_ENDINGS = {"dir": "", "hub": "", "onnx": ".onnx", "torch-prune": ".safetensors"}


@dataclass(frozen=True)
class ExportRun:
    """Export a run for others."""

    run_id: tyro.conf.Positional[str]
    """Run ID or key of a level or final training, or a unique prefix of either. `python tools/lineage.py list` shows
    them."""
    to: Literal["dir", "hub", "onnx", "torch-prune"] = "dir"
    """dir: a directory with network, signed mask, model card and lineage. hub: the same, uploaded to the Hugging Face
    Hub. onnx: the network. torch-prune: a state dict with weight_orig and weight_mask."""
    out: Path | None = None
    """New file or directory. Default: named after the run, in the working directory. With hub: a temporary one."""
    repo: str | None = None
    """USER/NAME on the Hub. The token is that of `hf auth login` or HF_TOKEN."""
    public: bool = False
    """Create a public repository. The default is private."""
    message: str = ""
    """Message of the commit on the Hub. Default: the run's name."""
    licence: str = UNKNOWN
    """Licence in the model card: an identifier of the Hub, such as apache-2.0, or any name. unknown: the card tells
    readers to ask the authors."""
    checkpoints: bool = False
    """Include the checkpoints and initial parameters (θ_init) of all ancestors. Without them, `verify` cannot compare
    signs with parameters."""
    dry_run: bool = False
    """List the files that an upload would send, and send nothing."""
    trust_code: bool = False
    """onnx: execute the copy of the user's file that the run keeps, if its network comes from one. Read it first."""
    place: Where = StoreOptions()

    def run(self) -> None:
        """Export the run, and print what was written."""
        self._check()
        if self.to == "hub":
            self._share()
            return
        name, num_bytes = self.place.ask(self._write)
        self._print(written=str(name), num_bytes=num_bytes)

    def _check(self) -> None:
        """Raise ValueError for options that do not belong together."""
        if self.to == "hub" and self.repo is None:
            raise ValueError("--to hub needs the name of a repository: give --repo USER/NAME")
        if self.to != "hub" and (self.repo or self.public or self.dry_run or self.message):
            raise ValueError(f"--repo, --public, --message and --dry-run need --to hub, not --to {self.to}")
        if self.to not in ("dir", "hub") and (self.checkpoints or self.licence != UNKNOWN):
            raise ValueError(f"--licence and --checkpoints need --to dir or --to hub, not --to {self.to}")
        if self.to != "onnx" and self.trust_code:
            raise ValueError(f"--trust-code needs --to onnx: --to {self.to} executes no file")
        if not self.licence.strip():
            raise ValueError("--licence is empty: give an identifier such as apache-2.0, or leave it out")

    def _write(self, store: LineageStore) -> tuple[Path, int]:
        """Write one file or directory, and return its path and size."""
        # Phase: describe the run, and choose the path.
        from harness.lineage.browse.find import find_node
        from harness.lineage.sharing.description import check_shareable
        from harness.lineage.sharing.export import shared_run

        node = find_node(store, self.run_id)
        record = check_shareable(store.record_of(node))
        shared = shared_run(store, node, record)
        out = self.out or Path(shared.short_name + _ENDINGS[self.to])
        if out.exists():
            raise FileExistsError(f"{out} exists: give another --out")

        # Phase: write.
        if self.to == "dir":
            return out, self._directory(store, node, out).num_bytes
        make_parent(out)
        (self._onnx if self.to == "onnx" else self._torch_prune)(store, node, shared, out)
        return out, out.stat().st_size

    def _directory(self, store: LineageStore, node: RunSummary | str, out: Path) -> Exported:
        from harness.lineage.sharing.export import export_run

        repo, licence = self.repo or "", self.licence
        return export_run(store, node, out, licence=licence, repo=repo, checkpoints=self.checkpoints)

    def _onnx(self, store: LineageStore, node: RunSummary, shared: SharedRun, out: Path) -> None:
        from harness.lineage.sharing.networks import network_of_run, write_onnx

        write_onnx(shared, network_of_run(store, node, trust_code=self.trust_code), out)

    def _torch_prune(self, store: LineageStore, node: RunSummary, shared: SharedRun, out: Path) -> None:
        from harness.lineage.sharing.networks import write_torch_prune

        write_torch_prune(store, node, shared, out)

    def _share(self) -> None:
        """Write the directory, list its files, and upload them."""
        from harness.lineage.sharing.hub import Repository, check_upload, upload

        # Phase: write the directory.
        assert self.repo is not None
        repository = Repository.of(self.repo) if self.dry_run else check_upload(self.repo, public=self.public)
        temporary = None if self.out is not None else Path(tempfile.mkdtemp(prefix="tickets-"))
        try:
            out = self.out or (temporary or Path()) / "export"
            exported = self.place.ask(lambda store: self._directory(store, self.run_id, out))

            # Phase: say what is uploaded, and upload it.
            if not self.place.json:
                self._announce(exported)
            if self.dry_run:
                self._print(uploaded=None, files=exported.files)
                return
            address = upload(exported, repository, public=self.public, message=self.message)
            self._print(uploaded=address, files=exported.files)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def _announce(self, exported: Exported) -> None:
        """Print the files of an upload before it begins."""
        kind = "public" if self.public else "private"
        verb = "would upload" if self.dry_run else "uploads"
        size = f"{len(exported.files)} files, {exported.num_bytes / 1e6:.2f} MB"
        print(f"{verb} {size}, to {self.repo} (a new repository is {kind}; licence: {self.licence}):")
        for name, num_bytes in exported.files.items():
            print(f"  {num_bytes:>12,}  {name}")
        sys.stdout.flush()

    def _print(self, **fields: Any) -> None:
        from harness.cli.lineage.printing import print_json

        if self.place.json:
            print_json("export", [], to=self.to, **fields)
        elif "written" in fields:
            print(f"{fields['num_bytes'] / 1e6:.2f} MB written to {fields['written']}")
            if self.licence == UNKNOWN and self.to == "dir":
                print("the model card says that the licence is unknown; --licence states one")
        elif fields["uploaded"]:
            print(f"uploaded: {fields['uploaded']}")
            print(f'load it: harness.load_signed_mask("hf://{self.repo}")')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Errors print one line and exit with code 1."""
    with clear_errors():
        command: ExportRun = parse_command(ExportRun, description=__doc__, arguments=arguments)
        show_messages(command.place.verbosity)
        command.run()
