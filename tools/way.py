"""Measure how many functions and files a reader must visit.

Usage: python tools/way.py [--against REVISION] [--list].
"""

import ast
import json
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from subprocess import check_output

import tyro

FLAGS = {"scores", "rewinds_to_k", "same_noise", "needs_origin", "sees_alpha", "ranking", "training"}
SEARCH = "--model.name resnet8 --data.loader memory --num-levels 4 --warmup-epochs 1 --level-epochs 1 --offline"


def trace(recipe: str, *words: str) -> None:
    """Run a recipe and print the functions that it calls.

    The JSON list has those of level 3, or of the final training.
    """
    segments = [set[str]()]  # functions called for the root of a search, level 0, level 1, …

    def note(frame, event, _) -> None:  # this thread only, without lambdas, comprehensions and module bodies
        code, (_, harness, file) = frame.f_code, frame.f_code.co_filename.rpartition("/harness/")
        if harness and event in ("call", "return") and code.co_name[0] != "<":
            if code.co_qualname == "final_training" or (code.co_qualname == "LocalNodes.commit" and event == "return"):
                segments.append(set())
            segments[-1].add(f"{file}:{code.co_qualname}")

    sys.argv, sys.path[0] = [recipe, *words], str(Path(recipe).parent)
    sys.setprofile(note)
    runpy.run_path(recipe, run_name="__main__")
    found = set().union(*(segments[4:5] if "aws_" in recipe else segments[1:3]))
    print("\n" + json.dumps(sorted(found), separators=(",", ":")))


def walk(tree: Path, scratch: Path) -> dict[str, list[str]]:
    """Return the functions that a level and a final training call.

    The code in the directory `tree` is run.
    """
    run = f"env -C {scratch} PYTHONPATH={tree} OMP_NUM_THREADS=1 {sys.executable} {__file__} {tree}"
    check_output(f"{run}/tools/prepare_data.py digits --out data".split())
    level = check_output(f"{run}/recipes/aws_digits.py {SEARCH}".split())
    ticket = max(json.loads(path.read_text())["key"] for path in scratch.glob("runs/level-*/record.json"))
    final = check_output(f"{run}/recipes/train_ticket.py --ticket {ticket} --epochs 1 --offline".split())
    return {"level": json.loads(level.split()[-1]), "final training": json.loads(final.split()[-1])}


def read(tree: Path) -> dict[str, list[str]]:
    """Analyse the sources in `tree`.

    Returns:
        Lines outside of harness/pruning that read a flag of a method, files directly in harness/, duplicate class
        names, and the longest import path between subpackages.
    """
    import networkx as nx  # 285 modules, which `--help` must not load

    # Phase: parse all sources
    edges, classes, asked = set[tuple[str, str]](), Counter[str](), list[str]()
    for path in (path for top in ("harness", "recipes", "tools") for path in (tree / top).rglob("*.py")):
        (top, inner, *_), nodes = path.relative_to(tree).parts, list(ast.walk(ast.parse(path.read_text())))
        classes.update(n.name for n in nodes if isinstance(n, ast.ClassDef) and n.name[0] != "_")
        flags = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr in FLAGS and inner != "pruning"]
        lines = {n.lineno for n in flags if "method" in ast.unparse(n.value).lower()}
        asked += [f"{path.relative_to(tree)}:{line}" for line in sorted(lines)]
        froms = [f"{n.module}.{a.name}".split(".") for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
        room = inner.removesuffix(".py") if top == "harness" else top
        edges |= {(room, name[1] if name[0] == "harness" else name[0]) for name in froms} - {(room, room)}

    # Phase: import graph, without __init__ because it imports from all subpackages
    rooms = nx.DiGraph(edges).subgraph({room for room, _ in edges} - {"__init__"})
    loose, twice = list(tree.glob("harness/*.py")), [name for name, count in classes.items() if count > 1]
    found = {"flags asked": asked, "loose files": list(map(str, loose)), "class names twice": twice}
    return found | {"floors": nx.dag_longest_path(rooms)}


def main(against: str = "HEAD", list: bool = False) -> None:
    """Print how many functions and files a pruning level and a final training enter, before and after a change.

    The table has a column for a revision, one for the working tree, and their ratio.

    Args:
        against: Revision to compare with. Choose an older one to see the growth since then.
        list: Also print the names of all functions that the working tree enters.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here, old = Path(__file__).resolve().parents[1], Path(scratch, "old")
        check_output(f"git archive --prefix old/ {against} | tar x -C {scratch}", shell=True, cwd=here)
        before, now = (walk(tree, Path(tempfile.mkdtemp(dir=scratch))) | read(tree) for tree in (old, here))
    print(*(f"{name}: {each}" for name, found in now.items() for each in found if list), sep="\n")
    print(f"{'':27}{against:>9}{'here':>9}{'ratio':>9}")
    for name in (*before, "level, files", "final training, files", "flags asked, files"):
        part, _, files = name.partition(", ")
        was, is_now = (len({each.split(":")[0] if files else each for each in found[part]}) for found in (before, now))
        print(f"{name:27}{was:9}{is_now:9}{is_now / max(was, 1):9.2f}")


if __name__ == "__main__":
    trace(*sys.argv[1:]) if sys.argv[1:2] and sys.argv[1].endswith(".py") else tyro.cli(main)
