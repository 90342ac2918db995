"""Test recipes and tools end to end, launched as a user does."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.common.tensors import load_correct
from tests.recipes.launching import LIGHT, REPOSITORY, TINY, elsewhere, nodes, recipe, run, run_ids, run_warm, tool

pytestmark = pytest.mark.long


def test_levels_are_runs_with_nested_masks_and_plain_checkpoints(searched):
    from harness.masks import SignedMask
    from harness.models import build_model

    where, ids = searched
    assert len(ids) == 3
    levels = sorted(nodes(where, "level").values(), key=lambda record: record["tags"]["level"])
    parents = [record["parents"][0]["key"] for record in levels]
    assert parents == [next(iter(nodes(where, "search").values()))["key"], levels[0]["key"], levels[1]["key"]]
    masks = []
    for record in levels:
        directory = where / "runs" / f"level-{record['key'][:16]}"
        state = load_file(directory / "checkpoint.safetensors")
        model = build_model("resnet8", num_classes=10, channels=1, image_size=8, width=4)
        model.load_state_dict(state)  # strict: the checkpoint has exactly the network's own keys
        mask = SignedMask.load(directory / "signed_mask.safetensors")
        params = {name: state[name] for name, _ in model.named_parameters()}
        for name, sign in mask.signs.items():
            assert torch.equal(sign, params[name].sign().to(torch.int8))
        for name, kept in mask.mask.tensors.items():
            assert not params[name][~kept].any()
        masks.append(mask.mask)
    assert masks[0].density == 1
    for sparser, denser in zip(masks[1:], masks, strict=False):
        assert sparser.issubset(denser) and sparser.num_remaining == int(0.8 * denser.num_remaining)


def test_a_repeated_command_reuses_every_level_and_a_longer_search_adds_levels(searched):
    where, ids = searched
    before = {path: path.stat().st_mtime_ns for path in (where / "runs").glob("*/record.json")}
    assert run_ids(recipe(where, "aws_digits.py", *TINY, *LIGHT)) == ids  # the loader is not part of the key
    longer = run_ids(recipe(where, "aws_digits.py", *TINY, *LIGHT, "--num-levels", "3"))
    assert longer[:3] == ids and len(longer) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_two_runs_are_bit_identical_and_so_are_the_loaders(searched, tmp_path, loader):
    where = elsewhere(searched[0], tmp_path)
    recipe(where, "aws_digits.py", *TINY, "--data.loader", loader, "--data.num-workers", "2")
    ours, theirs = nodes(searched[0], "level"), nodes(where, "level")
    assert len(theirs) == 3
    for name, record in theirs.items():
        for file in ("checkpoint.safetensors", "signed_mask.safetensors"):
            assert record["files"][file] == ours[name]["files"][file]


MEMORY = ("--loader", "memory")


@pytest.fixture(scope="module")
def trained(searched):
    """Return the run IDs of final trainings of the deepest ticket.

    The keys are kind and sgd_seed.
    """
    where, ids = searched
    found = {}
    for kind, seed in (("signed_mask", 1), ("signed_mask", 2), ("retrain", 1)):
        options = ["--ticket", ids[-1], "--kind", kind, "--init-seed", "2", "--sgd-seed", str(seed), *MEMORY]
        output = recipe(where, "train_ticket.py", *options)
        found[kind, seed] = re.search(r"run ([0-9a-f]{32})", output)[1]
    return found


def test_train_ticket_then_stability_and_lmc(searched, trained):
    where, found, memory = searched[0], trained, MEMORY
    pair = found["signed_mask", 1], found["signed_mask", 2]
    stable = tool(where, "stability.py", *pair, *memory, "--json", cold=True)
    curve = json.loads(stable)
    assert len(curve["alphas"]) == 11 and curve["test_images"] == 500
    ends = (curve["error_percent"][0] + curve["error_percent"][-1]) / 2
    assert curve["barrier"] == pytest.approx(max(curve["error_percent"]) - ends)
    text = tool(where, "lmc.py", found["signed_mask", 1], found["retrain", 1], *memory, "--epsilon", "100")
    assert text.index("excess over the straight line") < text.index("barrier ") < text.index("connected: barrier")
    assert (where / re.search(r"plot (.*)", text)[1]).is_file()
    # with the two networks swapped, the same run is reused and its curve reversed
    there = json.loads((where / re.search(r"plot (.*)", text)[1]).with_name("barrier.json").read_text())
    back = json.loads(tool(where, "lmc.py", found["retrain", 1], found["signed_mask", 1], *memory, "--json"))
    assert back["run"] in text and back["error_percent"] == there["error_percent"][::-1]
    assert back["recorded_error_a_percent"] == there["recorded_error_b_percent"]
    # a final training is refused as a ticket
    refused = recipe(where, "train_ticket.py", "--ticket", found["retrain", 1], ok=False)
    assert "is a training; this command needs a level" in refused
    # stability needs two trainings from the same start
    refused = tool(where, "stability.py", found["signed_mask", 2], found["retrain", 1], *memory, ok=False)
    assert refused.startswith("error: ") and "Traceback" not in refused
    assert "started from different parameters" in refused and "--cross-init" in refused


@pytest.mark.parametrize(
    "name",
    ["stability", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lmc", "norm_barrier", "sign_barrier"))],
)
def test_two_processes_compare_and_print_once(searched, trained, tmp_path, name):
    """Check that two processes give the same run as one.

    Kernels may sum in another order, so at most one of 500 images may be classified differently.
    """
    pair = trained["signed_mask", 1], trained["signed_mask", 2] if name == "stability" else trained["retrain", 1]
    keys = [
        json.loads(tool(searched[0], "lineage.py", "show", run, "--json"))["nodes"][0]["key"]
        for run in (searched[1][-1:] if name in ("norm_barrier", "sign_barrier") else pair)
    ]
    words = [*keys, *MEMORY, "--json", "--num-alphas", "3", "--offline"]
    curves = []
    for processes in (0, 2):
        where = elsewhere(searched[0], tmp_path / str(processes))
        shutil.copytree(searched[0] / "runs", where / "runs", ignore=shutil.ignore_patterns("analysis-*"))
        curves.append(json.loads(recipe(where, f"../tools/{name}.py", *words, processes=processes)))
    one, two = curves
    assert two["error_percent"] == pytest.approx(one["error_percent"], abs=0.2 + 1e-9)
    assert (two["run"], two["test_images"], two["bn_images"]) == (one["run"], 500, one["bn_images"])
    points = [
        load_correct(next((tmp_path / str(processes) / "runs").glob("analysis-*/correct.safetensors")))["points"]
        for processes in (0, 2)
    ]
    assert points[0].shape == (3, 500)
    assert int((points[0] != points[1]).sum(1).max()) <= 1  # the second process evaluated the second half


@pytest.mark.slow
def test_launched_runs_pass_verify_gc_bundle_and_import(searched, trained, tmp_path):
    """Run verify and gc, then bundle, import and verify elsewhere."""
    where, ids = searched

    def lineage(*words: str, place: Path = where) -> dict:
        return json.loads(tool(place, "lineage.py", *words, "--json"))

    # Phase: verify all runs and a comparison
    pair = trained["signed_mask", 1], trained["signed_mask", 2]
    compared = json.loads(tool(where, "stability.py", *pair, *MEMORY, "--json"))["run"]
    proved = lineage("verify", "--all")
    assert proved["problems"] == [] and proved["notes"] == []
    assert {"pruned", "start", "mask", "compared", "artifacts", "theta_init", "data"} <= proved["checked"].keys()
    # Phase: on a copy, gc deletes the checkpoints of levels without a final training
    runs = tmp_path / "runs"
    shutil.copytree(where / "runs", runs)
    clear = ("gc", "--keep-levels", "tickets", "--runs", str(runs))
    listed = lineage(*clear)
    paths = [Path(item["path"]) for item in listed["items"]]
    assert "L01" in {item["name"].split()[0] for item in listed["items"]} and all(path.is_file() for path in paths)
    deleted = lineage(*clear, "--delete")
    assert [item["path"] for item in deleted["items"]] == [str(path) for path in paths] and deleted["deleted"]
    assert not any(path.exists() for path in paths)
    proved = lineage("verify", "--all", "--runs", str(runs))
    assert proved["problems"] == [] and len(proved["notes"]) == len(paths)
    # Phase: export the comparison with its ancestors, import and verify
    out, theirs = tmp_path / "bundle", tmp_path / "theirs"
    theirs.mkdir()
    assert lineage("bundle", compared, "--checkpoints", "--out", str(out))["num_nodes"] == len(ids) + 4
    taken = lineage("import", str(out), place=theirs)["imported"]
    assert {one["outcome"] for one in taken} == {"new"} and len({one["run_id"] for one in taken}) == len(taken)
    proved = lineage("verify", "--all", "--data-directory", str(where / "data"), place=theirs)
    assert proved["problems"] == [] and proved["notes"] == [] and proved["num_nodes"] == len(ids) + 4
    for origin in (*ids, *pair, compared):  # each is found by its run ID in the first store
        assert origin in tool(theirs, "lineage.py", "show", origin)


def test_barrier_to_the_initial_norm_is_that_of_plain_networks(searched, tmp_path):
    """Compare both ends of the curve with stock PyTorch.

    The ends are the ticket, and the ticket with ψ_init in place of ψ. The search starts from a trained network, so that
    its ψ_init differs from the usual constants 1 and 0.
    """
    # Phase: search from a trained network and compare its ticket with the copy
    from harness.models import build_model, partition_of

    begun = next(record for record in nodes(searched[0], "level").values() if record["tags"]["level"] == "00")
    trained = searched[0] / f"runs/level-{begun['key'][:16]}/checkpoint.safetensors"
    where = elsewhere(searched[0], tmp_path)  # in its own directory, because both searches' levels have equal names
    ids = run_ids(recipe(where, "aws_digits.py", *TINY, *LIGHT, "--initialisation", str(trained)))
    options = ["--bn-convention", "none", "--num-alphas", "2", "--loader", "memory", "--json"]
    curve = json.loads(tool(where, "norm_barrier.py", ids[-1], *options, cold=True))
    # Phase: evaluate both networks with stock PyTorch
    key = json.loads(tool(where, "lineage.py", "show", ids[-1], "--json"))["nodes"][0]["key"]
    deepest = json.loads((where / f"runs/level-{key[:16]}/record.json").read_text())
    ticket = load_file(where / f"runs/level-{deepest['key'][:16]}/checkpoint.safetensors")
    initial = load_file(where / f"runs/search-{deepest['nested_under'][:16]}/theta_init.safetensors")
    test = load_file(where / "data/digits/test.safetensors")
    images_NCHW = (test["images_NHWC"].permute(0, 3, 1, 2).float() / 255 - 0.3053) / 0.3762
    model = build_model("resnet8", num_classes=10, channels=1, image_size=8, width=4).eval()
    norm = partition_of("resnet8", model).norm
    assert any(initial[name].unique().numel() > 1 for name in norm)
    copy = ticket | {name: initial[name] for name in norm}
    for error, state in zip(curve["error_percent"], (copy, ticket), strict=True):
        model.load_state_dict(state)
        wrong = int((model(images_NCHW).argmax(1) != test["labels"]).sum())
        assert abs(wrong - error * 5) <= 1  # kernels sum in another order, so one image may differ
    assert nodes(where, "analysis")[f"norm_init L02 d{0.64:.3f} aws resnet8-w4"]["parents"] == [
        {"key": deepest["key"], "relation": "compared"},
        {"key": deepest["nested_under"], "relation": "initialised-from"},
    ]


def test_barrier_to_the_signs_on_a_fresh_initialisation_is_that_of_plain_networks(searched):
    """Compare the copy's error with stock PyTorch.

    The copy has the weights of the network of seed 7 with the ticket's signs.
    """
    from harness.models import partition_of
    from tests.models.drawing import draw_model

    # Phase: the curve between ticket and copy
    where, ids = searched
    options = ["--bn-convention", "none", "--num-alphas", "2", "--init-seed", "7", *MEMORY, "--json"]
    curve = json.loads(tool(where, "sign_barrier.py", ids[-1], *options))
    key = json.loads(tool(where, "lineage.py", "show", ids[-1], "--json"))["nodes"][0]["key"]
    # Phase: evaluate the copy with stock PyTorch
    ticket = load_file(where / f"runs/level-{key[:16]}/checkpoint.safetensors")
    test = load_file(where / "data/digits/test.safetensors")
    images_NCHW = (test["images_NHWC"].permute(0, 3, 1, 2).float() / 255 - 0.3053) / 0.3762
    model = draw_model("resnet8", init_seed=7, num_classes=10, channels=1, image_size=8, width=4).eval()
    norm = partition_of("resnet8", model).norm
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name not in norm:
                values.copy_(values.abs() * ticket[name].sign())
        wrong = int((model(images_NCHW).argmax(1) != test["labels"]).sum())
    assert abs(wrong - curve["error_percent"][0] * 5) <= 1  # one image may differ
    # Phase: the record, and the refusal of the search's own seed
    record = nodes(where, "analysis")[f"signed_init i7 L02 d{0.64:.3f} aws resnet8-w4"]
    assert record["parents"] == [{"key": key, "relation": "compared"}] and record["tags"]["init_seed"] == "7"
    refused = tool(where, "sign_barrier.py", ids[-1], "--init-seed", "1", *MEMORY, ok=False)
    assert refused.startswith("error: ") and "init_seed 1 is the search's own" in refused


def test_a_signed_mask_loaded_by_run_id_in_a_custom_loop(pristine, tmp_path):
    where, ids = pristine
    script = f"""
import torch
from harness import load_signed_mask
from harness.models import build_model
mask = load_signed_mask("{ids[-1]}")
model = build_model("resnet8", num_classes=10, channels=1, image_size=8, width=4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
mask.apply_(model)
mask.keep(optimizer)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
params = dict(model.named_parameters())
print(sum(int(params[name].count_nonzero()) for name in mask.mask.tensors) <= mask.mask.num_remaining, mask.density)
"""
    (tmp_path / "own_loop.py").write_text(script)
    alive, density = run_warm(where, str(tmp_path / "own_loop.py")).split()
    assert alive == "True" and float(density) == pytest.approx(0.64, abs=1e-3)


def _right_by_stock_pytorch(where: Path) -> bool:
    """Check each level's per-image results with stock PyTorch.

    One of 500 images may differ.
    """
    from harness.models import build_model

    test = load_file(where / "data/digits/test.safetensors")
    images_NCHW = (test["images_NHWC"].permute(0, 3, 1, 2).float() / 255 - 0.3053) / 0.3762
    model = build_model("resnet8", num_classes=10, channels=1, image_size=8, width=4).eval()
    differ = []
    for record in nodes(where, "level").values():
        directory = where / f"runs/level-{record['key'][:16]}"
        model.load_state_dict(load_file(directory / "checkpoint.safetensors"))
        held = load_correct(directory / "correct.safetensors")
        assert held.keys() == {"test", "test_recorded_bn"} and "correct.safetensors" in record["files"]
        with torch.no_grad():
            right_N = model(images_NCHW).argmax(1) == test["labels"]
        differ.append(int((right_N != held["test_recorded_bn"]).sum()))
    return max(differ) <= 1


def test_two_processes_search_and_agree(by_two):
    where, ids = by_two
    assert len(ids) == 3
    assert {record["config"]["launch"]["world_size"] for record in nodes(where, "level").values()} == {2}
    assert _right_by_stock_pytorch(where)
    again = run_ids(recipe(where, "aws_digits.py", *TINY, *LIGHT, processes=2))
    assert again == ids


@pytest.mark.slow  # tests/recipes/test_server_faults.py covers most of it
def test_an_unreachable_server_is_refused_unless_offline(prepared, tmp_path):
    where = elsewhere(prepared, tmp_path)
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    refused = recipe(where, "aws_digits.py", *TINY, ok=False, **away)
    assert "Is the server up?" in refused and "--offline" in refused and "Traceback" not in refused
    output = recipe(where, "aws_digits.py", *TINY, *LIGHT, "--num-levels", "1", "--offline", **away)
    keys = re.findall(r"[0-9a-f]{64}", output)
    assert len(set(keys)) == 2 and len(nodes(where, "level")) == 2
    ticket = ["--ticket", keys[-1], "--kind", "mask", "--loader", "memory"]
    trained = recipe(where, "train_ticket.py", *ticket, "--offline", **away)
    assert re.search(r"run [0-9a-f]{64}", trained)
    tool(where, "lineage.py", "sync")
    listed = tool(where, "lineage.py", "list", "--json")
    assert all(key in listed for key in keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lrrr"], "unknown method 'lrrr' (did you mean 'lrr'?); known: aws, "),
        (["--model.name", "resnet21"], "unknown network 'resnet21'"),
        (["--data.directory", "nowhere"], "tools/prepare_data.py digits --out nowhere"),
        (["--global-batch-size", "5000"], "5000"),
    ],
)
def test_bad_input_is_a_one_line_error(prepared, options, message):
    stderr = recipe(prepared, "aws_digits.py", *options, ok=False)
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line and "Traceback" not in stderr


def test_ticket_errors_are_clear_lines(searched):
    where, ids = searched
    command = [sys.executable, str(REPOSITORY / "recipes" / "train_ticket.py")]
    missing = run(where, *command, "--ticket", "0" * 32, ok=False)
    assert missing.startswith("error: no run")
    own = recipe(where, "train_ticket.py", "--ticket", ids[-1], "--init-seed", "1", ok=False)
    assert "init_seed 1 is the search's own" in own
