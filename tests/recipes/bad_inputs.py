"""List bad inputs for a launch and the error for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_file
from harness.lineage.nodes.local_files import json_bytes
from harness.masks import Mask, SignedMask
from harness.models import build_model

CHECKPOINT, MASK, RECORD, SUMS = "checkpoint.safetensors", "signed_mask.safetensors", "record.json", "SHA256SUMS"
Loader = Literal["ffcv", "memory"]


@dataclass(frozen=True)
class Place:
    """A working directory with prepared digits and a one-level search."""

    directory: Path
    key: str
    """Key of the deepest level."""

    @property
    def node(self) -> Path:
        """Directory of the deepest level's local run."""
        return self.directory / "runs" / f"level-{self.key[:16]}"

    @property
    def data(self) -> Path:
        """Directory of the prepared digits."""
        return self.directory / "data" / "digits"

    def reseal(self, change: Callable[[dict[str, Any]], object] = lambda record: None) -> None:
        """Change the level's record and recompute all digests."""
        record = json.loads((self.node / "record.json").read_bytes())
        record["files"] = {name: sha256_file(self.node / name) for name in record["files"]}
        change(record)
        (self.node / "record.json").write_bytes(json_bytes(record))
        sums = {**record["files"], "record.json": sha256_file(self.node / "record.json")}
        (self.node / "SHA256SUMS").write_text("".join(f"{one}  {name}\n" for name, one in sorted(sums.items())))


@dataclass(frozen=True)
class Bad:
    """One bad input, and the error that must refuse it."""

    name: str
    spoil: Callable[[Place], object]
    words: str
    """Regular expression for the error message."""
    kind: str
    """Kind of input; docs/reliability.md states the number per kind."""
    loader: Loader = "memory"
    ticket: str = ""
    """Ticket of the final training; empty for the level's key, "search" for the search's key."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def cut(path: Path) -> None:
    """Truncate a file to its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def altered(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path: Path) -> None:
    """Truncate a file to zero bytes."""
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """Replace a file by a safetensors file without the harness's metadata."""
    save_file({"weight": torch.zeros(3)}, path)


def pickled(path: Path) -> None:
    """Replace a file by a pickle from `torch.save`."""
    torch.save({"weight": torch.zeros(3)}, path)


def missing(path: Path) -> None:
    """Delete a file."""
    path.unlink()


def _damaged(
    kind: str, where: Callable[[Place], Path], words: str, *, named: str = "", loader: Loader = "memory"
) -> list[Bad]:
    """Return one bad input for each kind of damage to a file."""
    return [
        Bad(f"{named} {damage.__name__}".strip(), _at(where, damage), words, kind, loader=loader)
        for damage in (cut, altered, emptied, foreign, pickled)
    ]


def _at(where: Callable[[Place], Path], damage: Callable[[Path], None]) -> Callable[[Place], None]:
    return lambda place: damage(where(place))


def network(width: int) -> torch.nn.Module:
    """Build the search's network with another width; the search uses width 2."""
    return build_model("resnet8", num_classes=10, channels=1, image_size=8, width=width)


def other_checkpoint(place: Place) -> None:
    """Replace the checkpoint by one of a wider network.

    All digests match.
    """
    Checkpoint.of(network(4), level=1, epochs=2, level_digest=place.key).save(place.node / CHECKPOINT)
    place.reseal()


def other_mask(place: Place) -> None:
    """Replace the signed mask by one of a wider network.

    All digests match.
    """
    params = dict(network(4).named_parameters())
    prunable = [name for name, param in params.items() if param.dim() > 1]
    SignedMask.of(params, Mask.dense(params, prunable)).save(place.node / MASK, {})
    place.reseal()


def renamed(name: str) -> Callable[[Place], None]:
    """Return a change that raises a file's format version by one.

    All digests match.
    """

    def spoil(place: Place) -> None:
        path = place.node / name
        data = path.read_bytes()
        now, newer = (b"checkpoint/1", b"checkpoint/2") if name == CHECKPOINT else (b"signed_mask/2", b"signed_mask/3")
        assert data.count(b"harness." + now) == 1
        path.write_bytes(data.replace(b"harness." + now, b"harness." + newer))
        place.reseal()

    return spoil


def resealed(name: str, damage: Callable[[Path], None]) -> Callable[[Place], None]:
    """Return a change that damages a file and recomputes all digests."""

    def spoil(place: Place) -> None:
        damage(place.node / name)
        place.reseal()

    return spoil


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    """Return a change of the record, with matching digests."""
    return lambda place: place.reseal(change)


def outside(place: Place) -> None:
    """Add a file outside the run's directory to the record."""
    place.reseal(lambda record: record["files"].update({"../x": "0" * 64}))


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    """Return a change of the test split's manifest."""

    def spoil(place: Place) -> None:
        content = json.loads((place.data / "test.json").read_text())
        change(content)
        (place.data / "test.json").write_text(json.dumps(content))

    return spoil


def other_split(name: str) -> Callable[[Place], None]:
    """Return a change that swaps in the other split's data file."""
    other = name.replace("train", "test") if name.startswith("train") else name.replace("test", "train")
    return lambda place: shutil.copy(place.data / other, place.data / name)


# tested with a search that continues from the level
LEVEL_FILES: list[Bad] = [
    *_damaged("checkpoint", lambda place: place.node / CHECKPOINT, f"{CHECKPOINT} was altered"),
    Bad("missing", lambda place: missing(place.node / CHECKPOINT), f"{CHECKPOINT} is missing", "checkpoint"),
    Bad("of another network", other_checkpoint, r"does not fit.*\(2.* in the network", "checkpoint"),
    Bad("of a newer format", renamed(CHECKPOINT), "has format harness.checkpoint/2; this version", "checkpoint"),
    Bad("cut, digests new", resealed(CHECKPOINT, cut), "not a complete checkpoint", "checkpoint"),
    Bad("pickled, digests new", resealed(CHECKPOINT, pickled), "not a complete checkpoint", "checkpoint"),
    Bad("foreign, digests new", resealed(CHECKPOINT, foreign), "not written by this harness", "checkpoint"),
    *_damaged("signed mask", lambda place: place.node / MASK, f"{MASK} was altered"),
    Bad("missing", lambda place: missing(place.node / MASK), f"{MASK} is missing", "signed mask"),
    Bad("of another network", other_mask, r"does not fit.*\(2.* in the network", "signed mask"),
    Bad("of a newer format", renamed(MASK), "has format harness.signed_mask/3; this version", "signed mask"),
    Bad("cut, digests new", resealed(MASK, cut), "not a complete signed-mask", "signed mask"),
    Bad("pickled, digests new", resealed(MASK, pickled), "not a complete signed-mask", "signed mask"),
    Bad("foreign, digests new", resealed(MASK, foreign), "not written by this harness", "signed mask"),
    *_damaged("record", lambda place: place.node / RECORD, "record.json was altered"),
    Bad("of a newer format", edited(lambda r: r.update(format=2)), "record of format 2; this version", "record"),
    Bad("with an unknown field", edited(lambda r: r.update(new=1)), "unknown fields", "record"),
    Bad("without its tags", edited(lambda r: r.pop("tags")), "'tags'", "record"),
    Bad("that lists a file outside", outside, r"without '\.\.'", "record"),
    *_damaged("list of digests", lambda place: place.node / SUMS, "SHA256SUMS was altered|it has no record.json"),
    Bad("missing", lambda place: missing(place.node / SUMS), "it has no SHA256SUMS", "list of digests"),
]


def _data_files() -> Iterator[Bad]:
    for loader, ending in (("ffcv", "beton"), ("memory", "safetensors")):
        for name in (f"train.{ending}", f"test.{ending}"):
            words = f"{name} (has [0-9]+ bytes, but its manifest says|was altered)"
            kind = "data file"
            yield from _damaged(kind, lambda place, name=name: place.data / name, words, named=name, loader=loader)
            is_missing = f"{name} is missing, but its manifest exists"
            yield Bad(
                f"{name} missing", lambda place, name=name: missing(place.data / name), is_missing, kind, loader=loader
            )
            yield Bad(
                f"{name} of another split", other_split(name), f"{name} has [0-9]+ bytes, but its", kind, loader=loader
            )


DATA_FILES: list[Bad] = [
    *_data_files(),
    *_damaged("manifest", lambda place: place.data / "test.json", r"test\.json is not a manifest|was altered"),
    Bad("missing", lambda place: missing(place.data / "test.json"), "tools/prepare_data.py digits", "manifest"),
    Bad(
        "of a newer format",
        manifest(lambda m: m.update(format="harness.data/2")),
        "of format harness.data/1",
        "manifest",
    ),
    Bad("of another data set", manifest(lambda m: m.update(name="mnist")), "describes mnist test, not dig", "manifest"),
    Bad("without a file's digest", manifest(lambda m: m["files"].clear()), r"lists no test\.safetensors", "manifest"),
]

# tested with a final training from the level
TICKETS: list[Bad] = [
    Bad(
        "settings of a newer version", edited(lambda r: r["config"]["search"].update(x=1)), "another version", "ticket"
    ),
    Bad("settings that lack one", edited(lambda r: r["config"]["search"].pop("final")), "another version", "ticket"),
    Bad("of other data", edited(lambda r: r["tags"].update(data_digest="0" * 64)), "was made from data 0000", "ticket"),
    Bad("unknown run ID", lambda place: None, "no run 'f{32}'", "ticket", ticket="f" * 32),
    Bad("unknown key", lambda place: None, "is not finished", "ticket", ticket="f" * 64),
    Bad(
        "unknown beginning of a key", lambda place: None, "no run ID or key begins with 'fff", "ticket", ticket="fffff"
    ),
    Bad(
        "a search, not a level",
        lambda place: None,
        "is a search; this command needs a level",
        "ticket",
        ticket="search",
    ),
    Bad(
        "the search's own initialisation", lambda place: None, "is the search's own", "ticket", options={"init_seed": 1}
    ),
    Bad("its checkpoint altered", lambda place: altered(place.node / CHECKPOINT), f"{CHECKPOINT} was alte", "ticket"),
    Bad("its mask altered", lambda place: altered(place.node / MASK), f"{MASK} was altered", "ticket"),
]


def _setting(words: str, **options: Any) -> Bad:
    return Bad(str(options), lambda place: None, words, "setting", options=options)


SETTINGS: list[Bad] = [
    _setting("unknown method 'lrrr'.*did you mean 'lrr'", method="lrrr"),
    _setting("unknown network 'resnet21'", model=("resnet21", None)),
    _setting("unknown data set 'digit'", data="digit"),
    _setting("not prepared in", directory="nowhere"),
    _setting("5000", global_batch_size=5000),
    _setting("global_batch_size is 0", global_batch_size=0),
    _setting("a process has only 64 images", accumulation_steps=65),
    _setting("accumulation_steps is 0", accumulation_steps=0),
    _setting("num_levels is -1", num_levels=-1),
    _setting("--pruning-fraction 1.0: must be", pruning_fraction=1.0),
    _setting("--pruning-fraction 0.0: must be", pruning_fraction=0.0),
    _setting("count_rule", count_rule="rounded"),
    _setting("unknown compile 'fast'", compile="fast"),
    _setting("choose --compile default", compile="reduce-overhead", accumulation_steps=2),
    _setting("level 1 keeps none of the", densities=(1e-6,), num_levels=1),
    _setting("model.width is 0; it must be 1 or more", model=("resnet8", 0)),
    _setting(r"width 1000000 of resnet8 is too large: [0-9,]+ parameters", model=("resnet8", 1_000_000)),
    _setting("global_batch_size 1 over 1 .* leaves 1 image", model=("vgg11_bn_cifar", None), global_batch_size=1),
    _setting("epochs must not be negative", level_epochs=-1),
    _setting("checkpoint_every is -1", checkpoint_every=-1),
    _setting("--sync-batchnorm needs GPUs", sync_batchnorm=True),
    _setting("fp16 mixed precision needs a GPU", precision="fp16"),
    _setting("precision 'fp8' is not supported", precision="fp8"),
]


def _world(words: str, **environment: str) -> Bad:
    return Bad(", ".join(environment), lambda place: None, words, "launch", environment=environment)


LAUNCHES: list[Bad] = [
    _world("asked for 2 processes, but", WORLD_SIZE="2"),
    _world("asked for several processes", ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="127.0.0.1"),
    _world("FSDP is not supported", ACCELERATE_USE_FSDP="true"),
    _world("DeepSpeed is not supported", ACCELERATE_USE_DEEPSPEED="true"),
    _world("Megatron-LM is not supported", ACCELERATE_USE_MEGATRON_LM="1"),
    _world("the launcher asks for bf16", ACCELERATE_MIXED_PRECISION="bf16", WORLD_SIZE="1"),
    _world("the launcher asks for fp8", ACCELERATE_MIXED_PRECISION="fp8", WORLD_SIZE="1"),
    _world("set accumulation with --accumulation-steps", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4"),
    _world("a compiled network would get", ACCELERATE_DYNAMO_BACKEND="INDUCTOR"),
]

BAD_INPUTS = [*LEVEL_FILES, *DATA_FILES, *TICKETS, *SETTINGS, *LAUNCHES]
