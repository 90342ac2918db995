"""Test the lineage page and its picture: contents, links and escaping."""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.lineage.browse.find import newest
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.lineage.page import page as page_module
from harness.lineage.page.drawing import DrawingError, dot_source, draw_svg
from harness.lineage.page.page import LOCAL_UI, page, ui_root
from harness.lineage.page.picture import Picture, picture_of
from harness.lineage.store import LineageStore
from harness.pruning import METHODS
from harness.pruning.wr import THETA_K
from tests.lineage.lineage_story import commit_story, key_of
from tests.lineage.lineage_tool import ask

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>&lt;b&gt;\\N\\"]}{|\n</title>]]>\x1b[31m\u202ex'
SVG = "{http://www.w3.org/2000/svg}"


def story(store: LineageStore, levels: int = 3) -> list[RunSummary]:
    commit_story(store.local, levels)
    return newest(LineageStore(None, store.local))


def boxes(picture: Picture) -> dict[str, str]:
    return {box.name: f"{box.kind} {box.lines[0]}" for box in picture.boxes}


def happened(picture: Picture) -> set[tuple[str, str, str]]:
    names = boxes(picture)
    return {(names[arrow.tail], arrow.relation, names[arrow.head]) for arrow in picture.arrows}


def test_the_picture_has_all_runs_and_relations(store: LineageStore) -> None:
    picture = picture_of(story(store))
    level = [f"level L{number:02d}, density {0.8**number:.3f}" for number in range(3)]
    made = {(one, "made", "mask signed mask") for one in level}
    assert happened(picture) == made | {
        ("theta_init θ_init", "initialised-from", level[0]),
        ("data digits", "trained-on", level[0]),
        (level[0], "pruned-from", level[1]),
        (level[1], "pruned-from", level[2]),
        ("mask signed mask", "masked-by", "training signed_mask"),
        ("theta_init θ_init", "initialised-from", "training signed_mask"),
        ("theta_init θ_init", "initialised-from", "training dense"),
        ("data digits", "trained-on", "training dense"),
        ("training signed_mask", "compared", "analysis comparison"),
        ("training dense", "compared", "analysis comparison"),
    }
    # one θ_init, because the search and both trainings share network, data and init_seed
    assert sum(box.kind == "theta_init" for box in picture.boxes) == 1
    (frame,) = picture.frames
    assert (frame.title, frame.key) == ("aws resnet20 digits s1", key_of("search"))
    assert {boxes(picture)[name] for name in frame.boxes} == {*level, "mask signed mask"}


def test_the_mask_of_a_training_is_drawn_as_its_tickets(store: LineageStore) -> None:
    picture = picture_of(story(store))
    (arrow,) = (arrow for arrow in picture.arrows if arrow.relation == "masked-by")
    (mask,) = (box for box in picture.boxes if box.name == arrow.tail)
    assert mask.key == key_of("level 2") and mask.lines[1] == "of L02"


def test_rewinding_is_drawn(store: LineageStore) -> None:
    """Check the arrows from θ_init or θ_k to each rewound level.

    They start at θ_k if the search stored it. Methods that continue from the parent's parameters have no such arrow.
    """
    arrows = {name: method.drawn_arrow for name, method in METHODS.items() if method.drawn_arrow}
    whole = ("imp", "wr", "magnitude_increase", "snip", "synflow")
    assert arrows == dict.fromkeys(whole, "rewound-to") | {"lrr_bn_rewind": "norm-rewound-to"}
    nodes = [replace(node, tags={**node.tags, "method": "imp"}) for node in story(store)]
    rewound = {("theta_init θ_init", "rewound-to", f"level L0{n}, density {0.8**n:.3f}") for n in (1, 2)}
    assert {one for one in happened(picture_of(nodes)) if "rewound" in one[1]} == rewound
    first = key_of("level 0")
    wr = [replace(node, tags={**node.tags, "method": "wr"}) for node in nodes]
    kept = [replace(n, files={**n.files, THETA_K: "a" * 64}) if n.key == first else n for n in wr]
    found = happened(picture_of(kept))
    assert {(tail.replace("θ_k", "θ_init"), *rest) for tail, *rest in found if "rewound-to" in rest} == rewound
    assert ("level L00, density 1.000", "made", "theta_init θ_k") in found
    texts = [element.text for element in ElementTree.fromstring(draw_svg(picture_of(kept))).iter(f"{SVG}text")]
    assert texts.count(" rewound-to ") == 2


def test_missing_parents_unfinished_searches_and_cycles_are_drawn() -> None:
    def node(name: str, kind: str, *parents: str) -> RunSummary:
        made = tuple(Parent(key_of(parent), "pruned-from") for parent in parents)
        return RunSummary.of(LineageRecord(key_of(name), kind, name, made))

    alone = picture_of([node("search", "search")])
    assert [box.kind for box in alone.boxes] == ["theta_init"] and not alone.frames
    orphan = picture_of([node("orphan", "level", "gone")])
    assert ("missing not found", "pruned-from", "level L?") in happened(orphan)
    circle = [node("a", "level", "b"), node("b", "level", "a")]
    assert len(picture_of(circle).arrows) == 2
    assert all(draw_svg(picture).count("<svg") == 1 for picture in (alone, orphan, picture_of(circle), picture_of([])))


def test_colour_follows_accuracy_and_the_legend_says_how(store: LineageStore) -> None:
    picture = picture_of(story(store))  # errors: 3 (trainings), 4, 5, 6 (levels)
    source = dot_source(picture)
    colour = {}
    for box in picture.boxes:
        line = next(line for line in source.splitlines() if line.strip().startswith(f"{box.name} ["))
        if box.error_percent is not None:
            colour[box.error_percent] = int(re.search(r"/ylgnbu7/(\d)", line)[1])
    assert colour == {3.0: 7, 4.0: 5, 5.0: 3, 6.0: 1}
    texts = [element.text for element in ElementTree.fromstring(draw_svg(picture)).iter(f"{SVG}text")]
    first = texts.index("test accuracy, %")
    assert [float(text) for text in texts[first + 1 : first + 8]] == pytest.approx(
        [94.2, 94.6, 95.1, 95.5, 95.9, 96.4, 96.8]
    )


def test_odd_errors_are_drawn(store: LineageStore) -> None:
    nodes = story(store)
    for value in (float("nan"), float("inf"), 5.0):
        same = [replace(node, metrics={"test_error_percent": value}) for node in nodes]
        assert draw_svg(picture_of(same)).count("<svg") == 1


def hostile(nodes: Sequence[RunSummary]) -> list[RunSummary]:
    tags = (
        "method",
        "network",
        "data",
        "level",
        "init_seed",
        "sgd_seed",
        "kind_of_training",
        "question",
        "x" + HOSTILE,
    )
    return [
        replace(
            node,
            name=HOSTILE,
            tags=dict.fromkeys(tags, HOSTILE) | {"data_digest": HOSTILE},
            metrics={**node.metrics, HOSTILE: 1.0},
            files={**node.files, HOSTILE: HOSTILE},
            run_id='x" onclick="alert(1)',
            status=HOSTILE,
        )
        for node in nodes
    ]


class Elements(HTMLParser):
    """Collect all elements of a page with their attributes, and its text.

    Text inside scripts and styles is included.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_and_tags_are_only_text(store: LineageStore) -> None:
    nodes = hostile(story(store))
    svg = draw_svg(picture_of(nodes))
    tree = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in tree.iter()} <= {
        *("svg", "g", "title", "text", "polygon", "path", "ellipse", "polyline", "a"),
    }
    attributes = {name for element in tree.iter() for name in element.attrib}
    assert not any(name.lower().startswith("on") for name in attributes)
    texts = [element.text or "" for element in tree.iter(f"{SVG}text")]
    shown = HOSTILE.split("\n")[0].replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    assert any(shown in text for text in texts)  # every character as given, entities and backslashes too

    html, problem = page(HOSTILE, nodes, ui_root(None))
    assert problem is None and "\x1b" not in html and "\u202e" not in html
    elements = Elements(html)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 2 and tags.count("style") == 1 and "img" not in tags and "b" not in tags
    assert not any(name.startswith("on") or name == "style" for _, attrs in elements.found for name in attrs)
    assert not any(tag == "a" and "href" in attrs for tag, attrs in elements.found)  # invalid run IDs become no link
    assert "<script>alert(1)</script>" in elements.text


def test_the_page_allows_its_own_script_alone_and_loads_nothing(store: LineageStore) -> None:
    html, _ = page("all", story(store), ui_root(None))
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = page_module._digest(text)
        assert f"{tag}-src '{digest}'" in policy
        assert digest.startswith("sha256-") and len(hashlib.sha256(text.encode()).digest()) == 32
    assert not any(name in ("src", "srcset") for _, attrs in Elements(html).found for name in attrs)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", html)


def test_the_page_links_to_runs_and_holds_every_run(store: LineageStore) -> None:
    paths = commit_story(store.local)
    ids = {store.deliver(path) for path in paths.values()}
    html, _ = page("all", newest(store), ui_root("http://user:secret@host:8080/mlflow/"))
    assert "secret" not in html and "user:" not in html
    linked = re.findall(
        r'<a href="http://host:8080/mlflow/#/experiments/\d+/runs/([0-9a-f]{32})\?workflowType=machine_learning"', html
    )
    assert set(linked) == ids and len(linked) == len(paths)
    data = json.loads(re.search('<script id="data"[^>]*>(.*?)</script>', html, re.DOTALL)[1])
    assert data["runs"].keys() == {key_of(name) for name in paths}
    shapes = {attrs.get("id") for _, attrs in Elements(html).found}
    assert data["boxes"].keys() | data["arrows"].keys() <= shapes  # every element that the script refers to exists


def test_credentials_in_tags_do_not_reach_the_page(store: LineageStore) -> None:
    told = "at http://me:geheim@host"
    nodes = [replace(node, name=told, kind="report", tags={"where": told}) for node in story(store)]
    html, _ = page(told, nodes, ui_root(None))
    assert "geheim" not in html and html.count("***@host") > 3 * len(nodes)


def test_many_runs_are_drawn_search_by_search(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_IN_ONE_PICTURE", 3)
    html, _ = page("all", story(store), ui_root(None))
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["aws resnet20 digits s1", "dense resnet20 s1"]
    shapes = [attrs["id"] for tag, attrs in Elements(html).found if attrs.get("class", "").startswith("node ")]
    assert len(shapes) == len(set(shapes)) > 0


def test_addresses_of_the_ui() -> None:
    assert ui_root(None) == ui_root("sqlite:///mlflow.db") == f"{LOCAL_UI}/"
    assert ui_root("https://me:pw@host/base") == "https://host/base/"
    assert ui_root("http://[::1]:5000") == "http://[::1]:5000/"
    for bad in ("http://", 'http://a"b/', "http://a b", "https://me:pw@"):
        with pytest.raises(ValueError, match="is not the address of an MLflow UI") as error:
            ui_root(bad)
        assert "pw" not in str(error.value)


def test_the_page_without_graphviz(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = story(store)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DrawingError, match="apt-get install graphviz"):
        draw_svg(picture_of(nodes))
    html, problem = page("all", nodes, ui_root(None))
    assert problem is not None and "`dot` is missing" in html and html.count("<tr data-key") == len(nodes)
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(DrawingError, match=r"pip install 'signed-tickets\[plots\]'"):
        draw_svg(picture_of(nodes))


def test_the_command(
    tool: object,  # noqa: F811
    store: LineageStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # Phase: write the page of all runs, of one run, and of one experiment
    paths = commit_story(store.local)
    store.deliver(paths["lmc"])
    out = tmp_path / "lineage.html"

    def run(*arguments: str) -> str:
        ask(tool, store, monkeypatch, "page", "--out", str(out), *arguments)  # type: ignore[arg-type]
        return capsys.readouterr().out

    assert run().startswith("7 runs written")
    assert run(key_of("level 1")[:10]).startswith("7 runs") and "<title>aws resnet20 L01" in out.read_text()
    assert json.loads(run("--experiment", "test", "--json"))["num_nodes"] == 7
    # Phase: wrong options, and a file that this command did not write, are refused
    for arguments, message in (
        (("--experiment", "none"), "no experiment 'none'"),
        (("--experiment", "test", "abcd"), "not both"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
    out.write_text("mine")
    with pytest.raises(SystemExit):
        run()
    assert "not a page of this command" in capsys.readouterr().err and out.read_text() == "mine"
