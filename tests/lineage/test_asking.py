"""Test tools/lineage.py and the Python API against a real server."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx
import pytest
import requests

from harness import lineage
from harness.lineage.store import LineageStore
from tests.free_port import free_port
from tests.lineage.shared_run import made_search
from tests.made_search import MadeSearch
from tests.tracking_server import server

pytestmark = pytest.mark.long


TOOL = Path(__file__).parents[2] / "tools" / "lineage.py"
NAMES = ("search", "L00", "L01", "L02", "signed_mask", "retrain", "lmc")


@dataclass
class Asked:
    """A synthetic search on a server, and the tool to query it."""

    tool: ModuleType
    search: MadeSearch
    uri: str
    where: Path

    @property
    def store(self) -> LineageStore:
        return lineage.open_store(self.where / "runs", self.uri)

    def run_id(self, name: str) -> str:
        run_id = self.store.run_id_of(self.search.keys[name])
        assert run_id is not None
        return run_id

    def ask(self, *arguments: str, code: int = 0, **place: object) -> str:
        """Run a command of the tool in this process.

        Args:
            arguments: Command and its arguments, without the store's options.
            code: Expected exit status.
            place: Store options that replace the defaults, such as `runs`.

        Returns:
            Standard output, or standard error if `code` is not 0.
        """
        options = {"runs": self.where / "runs", "tracking-uri": self.uri} | place
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["lineage.py", *arguments, *words])
            ended = 0
            try:
                self.tool.main()
            except SystemExit as stop:
                ended = int(stop.code or 0)
        assert ended == code, out.getvalue() + err.getvalue()
        assert "Traceback" not in err.getvalue()
        return err.getvalue() if code else out.getvalue()

    def json(self, *arguments: str, code: int = 0, **place: object) -> dict[str, Any]:
        answer = json.loads(self.ask(*arguments, "--json", code=code, **place))
        assert (answer["format"], answer["command"]) == (1, arguments[0])
        return dict(answer)

    def names(self, nodes: list[dict[str, Any]]) -> list[str]:
        """Return the short names of runs in the tool's JSON output."""
        known = {key: name for name, key in self.search.keys.items()}
        return [known[node["key"]] for node in nodes]


@pytest.fixture(scope="module")
def asked(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    # Phase: commit a synthetic search with two final trainings
    where = tmp_path_factory.mktemp("asked")
    shutil.copy(empty_store, where / "server.db")
    search = made_search(where / "runs", 2, ("signed_mask", "retrain"))
    # Phase: import the tool, start a server and deliver
    spec = importlib.util.spec_from_file_location("lineage_tool_asked", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    port = free_port()
    with server(where, port):
        made = Asked(tool, search, f"http://127.0.0.1:{port}", where)
        delivered = made.json("sync", experiment="asked")["delivered"]
        assert [one["run_id"] for one in delivered] == [made.run_id(name) for name in NAMES]
        yield made


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "lmc retrain signed_mask L02 L01 L00 search"),
        ("--limit 2", "lmc retrain"),
        ("--experiment asked --kind level", "L02 L01 L00"),
        ("--method aws", "L02 L01 L00 search"),
        ("--method lrr", ""),
        ("--network resnet8 --kind search", "search"),
        ("--network resnet8-w2 --kind search", "search"),
        ("--network resnet8-w3", ""),
        ("--level 1", "L01"),
        ("--density 0.1..0.7", "retrain signed_mask L02"),
        ("--density 0.8", "L01"),
        ("--kind retrain --since 2020-01-01", "retrain"),
        ("--since 2100-01-01", ""),
    ],
)
def test_list(asked: Asked, options: str, expected: str) -> None:
    assert asked.names(asked.json("list", *options.split())["nodes"]) == expected.split()
    shown = asked.ask("list", *options.split())
    has_barrier = "lmc" in expected
    lines = 3 + len(expected.split()) + 2 * has_barrier  # and an empty line and one that explains the barrier
    assert len(shown.splitlines()) == lines and ("no run matches" in shown) == (not expected)
    for name in expected.split():
        assert asked.run_id(name)[:8] in shown
    # barriers have a column where there is one
    assert ("barrier: points above the straight line" in shown, "7.00" in shown) == (has_barrier,) * 2


def test_show_and_tree(asked: Asked) -> None:
    run_id = asked.run_id("L02")
    shown = asked.json("show", run_id[:12])
    assert shown["node"] == asked.search.keys["L02"] and shown["parents"] == [asked.search.keys["L01"]]
    assert set(shown["children"]) == {asked.search.keys[name] for name in ("signed_mask", "retrain")}
    text = asked.ask("show", run_id)
    for word in (
        run_id,
        asked.search.keys["L02"],
        "pruned-from",
        "masked-by",
        "trained-from",
        "signed_mask.safetensors",
    ):
        assert word in text
    for name in NAMES:
        tree = asked.json("tree", asked.run_id(name))
        assert sorted(asked.names(tree["nodes"])) == sorted(NAMES)
        assert tree["node"] == asked.search.keys[name]
    assert f"{run_id[:8]}  " in asked.ask("tree", "models:/aws-digits-resnet8-w2@s1-L02").split("◀")[0]


def test_ancestors_descendants_and_path(asked: Asked) -> None:
    assert asked.names(asked.json("ancestors", asked.run_id("L02"))["nodes"]) == ["search", "L00", "L01", "L02"]
    below = asked.names(asked.json("descendants", asked.run_id("L01"))["nodes"])
    assert below[0] == "L01" and below[-1] == "lmc" and set(below[1:-1]) == {"L02", "signed_mask", "retrain"}
    path = asked.json("path", asked.run_id("L00"), asked.run_id("signed_mask"))
    assert asked.names(path["nodes"]) == ["L00", "L01", "L02", "signed_mask"]
    keys = asked.search.keys
    assert path["steps"] == [
        {"from": keys["L00"], "to": keys["L01"], "relation": "pruned-from"},
        {"from": keys["L01"], "to": keys["L02"], "relation": "pruned-from"},
        {"from": keys["L02"], "to": keys["signed_mask"], "relation": "masked-by"},
    ]
    assert "↓ masked-by" in asked.ask("path", asked.run_id("L00"), asked.run_id("signed_mask"))
    assert "↑ was masked-by" in asked.ask("path", asked.run_id("signed_mask"), asked.run_id("L00"))
    for command, name in (("ancestors", "L02"), ("descendants", "L01")):
        assert "◀" in asked.ask(command, asked.run_id(name))


def test_diff(asked: Asked) -> None:
    answer = asked.json("diff", asked.run_id("L01"), asked.run_id("L02"))
    assert asked.names(answer["nodes"]) == ["L01", "L02"]
    assert answer["differences"]["what"] == {"level": ["01", "02"]}
    masks = answer["masks"]["all_layers"]
    assert (
        masks["kept_both"] == masks["kept_b"] == int(0.8 * masks["kept_a"])
    )  # nested: b keeps only weights that a keeps
    assert masks["mask_overlap"] == masks["kept_b"] / masks["kept_a"]
    text = asked.ask("diff", asked.run_id("L01"), asked.run_id("L02"))
    assert f"both {masks['kept_both']:,}" in text and "signs agree" in text and "layer3.0.conv2.weight" in text
    seeds = asked.json("diff", asked.run_id("signed_mask"), asked.run_id("retrain"))["differences"]["seeds"]
    assert seeds == {"init_seed": ["2", None]}


def test_verify_gc_and_export(asked: Asked, tmp_path: Path) -> None:
    proved = asked.json("verify", "--all")
    assert proved["problems"] == [] and proved["num_nodes"] == len(NAMES) and proved["checked"]["artifacts"] > 20
    assert asked.json("verify", asked.run_id("L01"))["num_nodes"] == 3
    assert "no problem found" in asked.ask("verify", asked.run_id("L00"))
    cleared = asked.json("gc", "--keep-levels", "tickets")
    assert not cleared["deleted"] and [item["name"][:3] for item in cleared["items"]] == ["L01"]
    assert "can be deleted; --delete does it" in asked.ask("gc", "--keep-levels", "tickets")
    written = asked.json("export", asked.run_id("L00"), "--out", str(tmp_path / "graph.json"))
    assert written["num_nodes"] == len(NAMES)
    assert len(json.loads((tmp_path / "graph.json").read_text())["edges"]) == 7
    told = asked.ask("export", "--format", "graphml", "--out", str(tmp_path / "graph.graphml"))
    assert told.startswith("7 runs and 7 edges written")
    assert set(networkx.read_graphml(tmp_path / "graph.graphml")) == set(asked.search.keys.values())


def test_bundle_and_import_into_another_store(asked: Asked, empty_store: Path, tmp_path: Path) -> None:
    out, run_id = tmp_path / "bundle", asked.run_id("signed_mask")
    shutil.copytree(asked.where / "runs", tmp_path / "runs")
    told = asked.json("bundle", run_id, "--checkpoints", "--out", str(out), runs=tmp_path / "none")  # from the server
    assert told["num_nodes"] == 5 and told["written"] == str(out)
    assert "5 runs, " in asked.ask("bundle", run_id, "--out", str(tmp_path / "again"))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    theirs = {"runs": tmp_path / "their runs", "tracking-uri": f"sqlite:///{tmp_path}/mlflow.db"}
    taken = asked.json("import", str(out), **theirs)["imported"]
    assert {one["outcome"] for one in taken} == {"new"} and all(one["run_id"] for one in taken)
    assert asked.ask("import", str(out), **theirs).count("there already") == 5
    proved = asked.json("verify", "--all", **theirs)
    assert proved["problems"] == [] and proved["checked"]["pruned"] == 2 and proved["checked"]["start"] == 4
    shown = asked.json("show", run_id, **theirs)  # by its run ID on the first server
    (node,) = (node for node in shown["nodes"] if node["key"] == shown["node"])
    assert node["origin_run_ids"] == [run_id] and node["run_id"] not in (None, run_id)


def test_page_has_every_run_and_links_to_the_server(asked: Asked, tmp_path: Path) -> None:
    out = tmp_path / "lineage.html"
    assert asked.json("page", "--out", str(out))["num_nodes"] == len(NAMES)
    text = out.read_text()
    assert all(f"{asked.uri}/#/experiments/" in text and asked.run_id(name) in text for name in NAMES)


def test_ui_of_a_server_starts_nothing_and_links_to_it(asked: Asked) -> None:
    assert f"{asked.uri}/#/experiments/" in asked.ask("ui", experiment="asked")
    assert asked.json("ui", asked.run_id("L01"), experiment="asked")["link"].startswith(f"{asked.uri}/#/experiments/")


def test_every_command_has_a_test(asked: Asked) -> None:
    tried = {"list", "show", "tree", "ancestors", "descendants", "path", "diff"}
    tried |= {"verify", "gc", "export", "bundle", "import", "sync", "page", "ui", "relocate"}
    assert set(asked.tool.COMMANDS) == tried


# ---------------------------------------------------------------------- functions


def test_three_lines_in_a_notebook(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    # Phase: the three lines of the documentation, with default paths
    run_id = asked.run_id("L02")
    monkeypatch.chdir(asked.where)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", asked.uri)

    from harness import lineage

    store = lineage.open_store()
    names = [node.name for node in lineage.ancestors(store, run_id)]

    assert [name.split()[0] for name in names] == ["made-up", "L00", "L01"]
    # Phase: graph queries
    keys = asked.search.keys
    assert [node.key for node in lineage.way(store, run_id, keys["lmc"])][-1] == keys["lmc"]
    assert {node.key for node in lineage.family(store, run_id)} == set(keys.values())
    assert {node.key for node in lineage.descendants(store, keys["L02"][:10])} == {
        keys[name] for name in ("signed_mask", "retrain", "lmc")
    }
    parents, children = lineage.relatives(store, run_id)
    assert [node.key for node in parents] == [keys["L01"]] and len(children) == 2
    query = lineage.Query(kind="level", density=lineage.parse_density("0.1..0.7"))
    assert [node.run_id for node in lineage.newest(store, query=query)] == [run_id]
    # Phase: differences, verification, and JSON of every result
    assert lineage.diff(store, run_id, run_id).differing_layers == []
    assert lineage.verify(store, run_id).problems == []
    assert lineage.load_signed_mask(run_id).density == pytest.approx(0.64, abs=1e-3)
    answers = (
        lineage.find_node(store, run_id),
        lineage.diff(store, run_id, keys["L01"]),
        lineage.verify(store, run_id),
    )
    assert all(json.dumps(answer.to_dict()) for answer in answers)


def test_every_public_name_exists() -> None:
    assert all(getattr(lineage, name) is not None for name in lineage.__all__)
    assert set(lineage.__all__) == set(lineage._HOME_OF)
    with pytest.raises(AttributeError, match="no attribute 'ancestor'; public: Difference, "):
        _ = lineage.ancestor


# ---------------------------------------------------------------------- requests


def test_the_number_of_requests_does_not_grow_with_the_number_of_runs(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count HTTP requests per query, before and after adding 30 runs."""
    # Phase: count the requests of each query
    sent: list[str] = []
    send = requests.Session.send

    def counted(session: requests.Session, request: Any, **options: Any) -> Any:
        if not request.url.endswith("/server-info"):  # MLflow asks for it once in each process
            sent.append(request.url)
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counted)
    # On a busy machine a query can take so long that the server is checked a second time.
    monkeypatch.setattr("harness.lineage.tracking.server._FRESH_SECONDS", 600.0)
    run_id = {name: asked.run_id(name) for name in ("L02", "lmc", "search")}
    nowhere = asked.where / "none"  # no local runs, so that the server answers every query

    def count() -> dict[str, int]:
        questions = {
            "list": lambda store: lineage.newest(store),
            "show": lambda store: lineage.relatives(store, run_id["L02"]),
            "tree": lambda store: lineage.family(store, run_id["lmc"]),
            "ancestors": lambda store: lineage.ancestors(store, run_id["lmc"]),
            "descendants": lambda store: lineage.descendants(store, run_id["search"]),
            "path": lambda store: lineage.way(store, run_id["search"], run_id["lmc"]),
            "load_signed_mask": lambda store: lineage.load_signed_mask(run_id["L02"], asked.uri, nowhere),
        }
        made = {}
        for name, question in questions.items():
            sent.clear()
            question(lineage.open_store(nowhere, asked.uri))
            made[name] = len(sent) - 1  # the first request checks that the server is reachable
        return made

    # Phase: add 30 runs and count again
    before = count()
    client = asked.store.server.client()
    run = client.get_run(run_id["L02"])
    tags = {name: value for name, value in run.data.tags.items() if name != "harness.key"}
    for number in range(30):
        key = f"{number:04x}{asked.search.keys['L02'][4:]}"
        client.create_run(run.info.experiment_id, tags=tags | {"harness.key": key, "harness.root": "f" * 64})
    assert count() == before
    # `list` requests the experiments and one page of runs; a mask needs the run, its model and the file
    assert before["list"] == 2 and before["load_signed_mask"] == 3
    assert max(before.values()) <= 5
