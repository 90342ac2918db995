"""Test the description of a run in MLflow and its escaping."""

import re
import shlex
import subprocess
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from harness.cli.lineage.printing import print_node, print_nodes
from harness.common.escape import code_block, for_markdown
from harness.lineage.browse.listing import columns, explain_barriers, short_id
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.lineage.page.page import _table
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import (
    NOTE_CHARACTERS,
    NOTE_TAG,
    Relative,
    describe,
    describe_search,
    hardware_of,
    precision_of,
    with_children,
)
from tests.lineage.lineage_story import commit_story, key_of

HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) | `![](http://a/b.png)` **b**\n# h"


def notes(store: LineageStore) -> dict[str, str]:
    client = MlflowClient(store.tracking_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.data.tags["harness.key"]: run.data.tags[NOTE_TAG] for run in runs}


def summary(name: str, kind: str = "level", **more: object) -> RunSummary:
    node = RunSummary.of(LineageRecord(key_of(name), kind, name))
    return replace(node, run_id="0" * 32, experiment_id="7", **more)


@pytest.mark.long
def test_a_level_links_to_its_parents_and_children(store: LineageStore) -> None:
    paths = commit_story(store.local)
    ids = {name: store.deliver(path) for name, path in paths.items()}
    experiment = MlflowClient(store.tracking_uri).get_experiment_by_name("test").experiment_id
    found = notes(store)

    def link(name: str) -> str:
        return f"](#/experiments/{experiment}/runs/{ids[name]}?workflowType=machine_learning)"

    came, _, made = found[key_of("level 1")].split("\n")[:3]
    assert came.startswith("**From** [aws resnet20 L00 d1.000" + link("level 0")) and "(pruned-from)" in came
    assert made.startswith("**Made from it** [aws resnet20 L02 d0.640" + link("level 2")) and link("lmc") not in made
    last = found[key_of("level 2")].split("\n")
    assert link("signed_mask") in last[2] and "(masked-by)" in last[2]
    record = store.local.load(key_of("level 1"))
    note = found[key_of("level 1")]
    for digest in (*record.files.values(), store.local.load(key_of("level 0")).files["signed_mask.safetensors"]):
        assert f"`{digest[:24]}…`" in note  # its own files, and its parent's mask
    assert "5.00 %" in note and "c0ffee" in note and f'load_signed_mask("{ids["level 1"]}")' in note
    assert "nothing yet" in found[key_of("lmc")].split("\n")[2] and link("dense") in found[key_of("lmc")]


def test_text_that_a_user_added_to_a_note_is_kept(store: LineageStore) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["level 0"])
    client = MlflowClient(store.tracking_uri)
    client.set_tag(run_id, NOTE_TAG, "Mine.\n\n**Made from it** nothing yet\n\nMore of mine.")
    store.deliver(paths["level 1"])
    first, _, made, _, last = client.get_run(run_id).data.tags[NOTE_TAG].split("\n")
    assert (first, last) == ("Mine.", "More of mine.") and "L01" in made
    client.set_tag(run_id, NOTE_TAG, "Mine alone.")
    store.deliver(paths["level 2"])
    assert client.get_run(run_id).data.tags[NOTE_TAG] == "Mine alone."


def test_names_and_tags_are_only_text() -> None:
    """Render descriptions with a Markdown renderer that allows HTML."""
    from markdown_it import MarkdownIt

    node = summary(HOSTILE, tags={"method": HOSTILE, "data": HOSTILE, "launch.command": "```\n</pre><script>"})
    node = replace(node, files={"signed_mask.safetensors": "a" * 64}, tags={**node.tags, "data_digest": HOSTILE})
    parent = Relative(summary(HOSTILE, files={"checkpoint.safetensors": "b" * 64}), "pruned-from")
    for text in (
        with_children(describe(node, [parent]), [parent]),
        describe_search(replace(node, kind="search"), [node, parent.node], has_picture=False),
    ):
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        assert "<script" not in html and "<img" not in html and "<h1" not in html and "<b>" not in html
        targets = set(re.findall('href="([^"]*)"', html))
        assert targets == {f"#/experiments/7/runs/{'0' * 32}?workflowType=machine_learning"}
        assert html.count("alert(1)") >= 4 and "&lt;/pre&gt;&lt;script&gt;" in html  # the text is visible


def test_a_long_command_is_wrapped_and_means_the_same() -> None:
    words = ["python", "a.py", "--name", "two words and 'quotes' " * 3, *(f"--option-{n}" for n in range(20))]
    node = summary("level", tags={"launch.command": shlex.join(words)})
    block = describe(node, []).partition("```\n")[2].partition("\n```")[0]
    assert block.count("\n") >= 3 and max(map(len, block.split("\n"))) < 110
    shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {block}"], capture_output=True, text=True, check=True)
    assert shell.stdout.split("\n")[:-1] == words
    for odd in ("FOO=1 python 'a", "python  a.py   two  spaces " * 9):
        assert odd in describe(summary("level", tags={"launch.command": odd}), [])


def test_fences_hold_and_control_characters_are_visible() -> None:
    assert code_block("a ``` b\nc").split("\n") == ["````", "a ``` b", "c", "````"]
    assert for_markdown("a\x1b[31m\u202eb") == r"a\\x1b\[31m\\u202eb"


def test_a_note_is_never_longer_than_mlflow_keeps() -> None:
    root = summary("root", "search")
    many = [
        replace(summary(f"level {n} with a rather long name" * 2), parents=(Parent(root.key, "pruned-from"),))
        for n in range(300)
    ]
    note = describe_search(root, many, has_picture=True)
    assert len(note) <= NOTE_CHARACTERS and "more | | | |" in note and "get-artifact?path=lineage/graph.svg" in note
    children = [Relative(node, "pruned-from") for node in many]
    assert "288 more" in with_children(describe(many[0], []), children)


@pytest.mark.parametrize("run_id", ["x/../y", "a)b", None])
def test_an_odd_run_id_is_no_link(run_id: str | None) -> None:
    node = replace(summary("odd"), run_id=run_id)
    assert "](" not in describe(node, [Relative(node, "pruned-from")])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ""),
        ({"search": {"precision": "no"}}, "float32"),
        ({"search": {"precision": "bf16"}}, "bf16 mixed precision"),
        ({"search": {"float32_matmul_precision": "high"}}, "float32, matrix products high"),
        ({"search": {"compile": "default"}}, "float32, compiled (default)"),
        ({"search": {"sync_batchnorm": True, "precision": "bf16"}}, "bf16 mixed precision, SyncBatchNorm"),
        (
            {"search": {}, "hardware": {"cuda": {"tf32_supported": True, "cudnn_allow_tf32": True}}},
            "float32, convolutions in TF32",
        ),
        (
            {
                "search": {},
                "launch": {"dtype": "float64"},
                "hardware": {"cuda": {"tf32_supported": True, "cudnn_allow_tf32": True}},
            },
            "float64",
        ),
        (
            {
                "search": {},
                "hardware": {"cuda": {"tf32_supported": True, "cudnn_allow_tf32": True, "tf32_override": "0"}},
            },
            "float32",
        ),
        ({"search": {}, "hardware": {"cuda": {"tf32_supported": True, "cudnn_allow_tf32": False}}}, "float32"),
        ({"search": {}, "hardware": {"cuda": {"tf32_supported": False, "cudnn_allow_tf32": True}}}, "float32"),
    ],
)
def test_a_runs_precision_in_words(config: dict[str, object], words: str) -> None:
    record = LineageRecord(key="0" * 64, kind="level", name="L00", parents=(), config=config, tags={})
    assert precision_of(record) == words


@pytest.mark.parametrize(
    ("device", "gpus", "words"),
    [
        ("cpu AVX2", [], "AMD EPYC, AVX2, 2 cores, 23.5 GiB"),
        ("cpu AVX512", [], "AMD EPYC, AVX512, 2 cores, 23.5 GiB"),
        (None, [], "AMD EPYC, 2 cores, 23.5 GiB"),  # a record of an early version
        ("NVIDIA H100", ["NVIDIA H100"] * 2, "AMD EPYC, 2 cores, 23.5 GiB, 2 × NVIDIA H100"),
    ],
)
def test_hardware_in_words_has_the_instruction_set_of_a_cpu_run(
    device: str | None, gpus: list[str], words: str
) -> None:
    config = {"hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "gpus": gpus}}
    config |= {} if device is None else {"launch": {"device": device}}
    record = LineageRecord(key="0" * 64, kind="level", name="L00", parents=(), config=config, tags={})
    assert hardware_of(record) == words


@pytest.mark.parametrize(
    ("question", "cell", "sentence"),
    [
        ("stability", "12.50", "barrier **12.50** points above the line"),
        ("lmc", "12.50", "barrier **12.50** points above the line"),
        ("norm_init", "Δ 72.20", "errors differ by **72.20** points"),
        ("signed_init", "Δ 72.20", "errors differ by **72.20** points"),
    ],
)
def test_a_comparison_shows_the_excess_above_the_line_or_the_difference(
    question: str, cell: str, sentence: str
) -> None:
    """The paper's barrier of 48.6 points holds half of the difference of the two ends."""
    metrics = {"barrier": 48.6, "barrier_floor": 36.1, "barrier_above_line": 12.5}
    node = replace(summary("lmc"), kind="analysis", tags={"question": question}, metrics=metrics)
    assert columns(node)["barrier"] == cell
    assert sentence in describe(node, [])
    assert columns(replace(node, metrics={}))["barrier"] == "–" and "barrier" not in describe(
        replace(node, metrics={}), []
    )


def test_tables_explain_their_barriers() -> None:
    values = {"barrier": 48.6, "barrier_floor": 36.1, "barrier_above_line": 12.5}
    nodes = [summary(name, "analysis", tags={"question": name}, metrics=values) for name in ("lmc", "norm_init")]
    assert explain_barriers([summary("level 1")]) == ""
    assert explain_barriers(nodes[:1]) == "barrier: points above the straight line"
    told = "barrier: points above the straight line; Δ: difference of the two errors"
    assert explain_barriers(nodes) == told and f"<p>{told}</p>" in _table(nodes, "")


def test_an_old_network_of_a_chosen_initialisation_still_had_its_drop_connect() -> None:
    tags = {"model": "efficientnet_b0_cifar", "init_seed": "1"}
    chosen = summary("a", "training", tags=tags | {"initialisation": "kaiming_normal"})
    assert (chosen.drawn_before or "").startswith("the biases of its convolutions 0; trained with drop-connect")
    assert (replace(chosen, tags=tags).drawn_before or "").startswith("its convolutions from Kaiming normal")
    assert replace(chosen, tags=chosen.tags | {"model": "mobilenet_v2_cifar"}).drawn_before is None


def test_lists_and_notes_name_what_older_versions_computed_in_another_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tags = {"question": "lmc", "bn_convention": "ema"}
    old = summary("a", "analysis", tags=tags)
    new = summary("b", "analysis", tags=tags | {"ema_start": "mean 0, variance 1"})
    other = summary("c", "analysis", tags={"question": "lmc", "bn_convention": "recompute"})
    drawn = summary("d", "training", tags={"model": "mobilenet_v2_cifar", "init_seed": "1"})
    assert [sorted(node.other_ways) for node in (old, new, other, drawn)] == [["ema statistics"], [], [], ["θ_init"]]
    print_nodes([old, new, other, drawn], {})
    told = capsys.readouterr().out
    assert f"ema statistics started the other way: {short_id(old)}; `show` tells how" in told
    assert f"θ_init drawn the other way: {short_id(drawn)}; `show` tells how" in told
    print_node(old, [], [])
    assert "from the interpolated ones" in capsys.readouterr().out
