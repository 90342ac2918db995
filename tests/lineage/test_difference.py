"""Test the comparison of two runs by settings, code, seeds and masks."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from harness.lineage.browse.difference import diff, differences
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask, SignedMask
from tests.lineage.lineage_story import commit_story, key_of, signed_mask


def record(**given: object) -> LineageRecord:
    config = {
        "search": {"optim": {"lr": 0.1, "momentum": 0.9}, "init_seed": 1, "data": {"name": "digits", "directory": "x"}},
        "launch": {"threads": 1},
        "level": 3,
    }
    values: dict[str, object] = {"config": config, "code": {"commit": "a", "torch": "2", "machine": "x86"}}
    return LineageRecord(key_of("x"), "level", "x", **{**values, **given})  # type: ignore[arg-type]


def test_differences_are_grouped_by_section() -> None:
    assert differences(record(), record()) == {}
    config = json.loads(json.dumps(record().config))
    config["search"]["optim"]["lr"] = 0.2
    config["search"]["init_seed"] = 2
    config["search"]["data"]["directory"] = "y"
    config["launch"]["threads"] = 4
    del config["level"]
    other = record(config=config, code={"commit": "b", "torch": "3", "machine": "arm"}, tags={"data_digest": "d"})
    assert differences(record(), other) == {
        "settings": {"optim.lr": (0.1, 0.2), "level": (3, None)},
        "data": {"data_digest": (None, "d")},
        "seeds": {"init_seed": ("1", "2")},
        "code": {"commit": ("a", "b")},
        "packages": {"torch": ("2", "3")},
        "launch": {"data.directory": ("x", "y"), "threads": (1, 4), "machine": ("x86", "arm")},
    }


@pytest.mark.parametrize("delivered", [False, True])
def test_masks_layer_by_layer(store: LineageStore, delivered: bool) -> None:
    paths = commit_story(store.local)
    if delivered:
        for path in paths.values():
            store.deliver(path)
        shutil.rmtree(store.local.directory)
        store = open_store(store.local.directory, store.tracking_uri)
    one, two = find_node(store, key_of("level 1")), find_node(store, key_of("level 2"))
    found = diff(store, one, two)
    a, b = signed_mask(1), signed_mask(2)  # count again in plain Python, weight by weight
    kept_a, kept_b = (
        a.mask.tensors["conv.weight"].reshape(-1).tolist(),
        b.mask.tensors["conv.weight"].reshape(-1).tolist(),
    )
    signs = list(zip(*(mask.signs["conv.weight"].reshape(-1).tolist() for mask in (a, b)), strict=True))
    both = sum(x and y for x, y in zip(kept_a, kept_b, strict=True))
    agree = sum(x and y and s == t for x, y, (s, t) in zip(kept_a, kept_b, signs, strict=True))
    (row,) = found.differing_layers
    assert (row.kept_a, row.kept_b, row.kept_both, row.agreeing) == (sum(kept_a), sum(kept_b), both, agree)
    assert row.mask_overlap == both / sum(x or y for x, y in zip(kept_a, kept_b, strict=True))
    assert found.to_dict()["masks"]["all_layers"]["sign_agreement"] == agree / both
    assert found.sections["settings"] == {"level": (1, 2)}
    same = diff(store, one, one)
    assert same.sections == {} and same.differing_layers == [] and same.total is not None


def test_masks_that_cannot_be_compared(store: LineageStore) -> None:
    commit_story(store.local)

    def write(directory: Path) -> None:
        params = {"conv.weight": torch.ones(2, 2)}
        mask = Mask({name: tensor > 0 for name, tensor in params.items()})
        SignedMask.of(params, mask).save(directory / "signed_mask.safetensors", {})

    store.local.commit(LineageRecord(key_of("vgg"), "level", "vgg L01", tags={"model": "vgg11"}), write)
    node = {name: find_node(store, key_of(name)) for name in ("vgg", "level 1", "lmc")}
    found = diff(store, node["level 1"], node["vgg"])
    assert found.layers is None and found.sections["what"]["model"] == ("resnet20", "vgg11")
    assert found.why_no_masks == "their networks differ (resnet20 and vgg11), so their masks cannot be compared"
    assert found.to_dict()["masks"] == {"comparable": False, "why": found.why_no_masks}
    assert diff(store, node["lmc"], node["vgg"]).why_no_masks == "lmc signed_mask dense (analysis) has no signed mask"
    (store.local.directory / f"level-{key_of('vgg')[:16]}" / "signed_mask.safetensors").write_bytes(b"altered")
    with pytest.raises(ValueError, match="was altered"):
        diff(store, node["level 1"], node["vgg"])
