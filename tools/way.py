"""Measure how far one must walk through the code: functions and files of a level, rooms, names, flags.

Launch     python tools/way.py [--against REVISION] [--list]
"""

import argparse
import ast
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FLAGS = {"scores", "rewinds_to_k", "same_noise", "needs_origin", "sees_alpha", "ranking", "training"}
SEARCH = "aws_digits.py --model.name resnet8 --data.loader memory --num-levels 4 --warmup-epochs 1 --level-epochs 1"
FINAL = "train_ticket.py --epochs 1 --ticket"
HERE = Path(__file__).resolve().parents[1]


def trace(script: str, *words: str) -> None:
    """Run a recipe; print the functions between two commits, and those within `final_training`, as JSON."""
    seen: list[set[tuple[str, str]]] = [set()]
    inside = [0]

    def note(frame, event, _argument) -> None:
        code = frame.f_code
        if event not in ("call", "return") or f"{os.sep}harness{os.sep}" not in code.co_filename:
            return
        inside[0] += (code.co_name == "final_training") * (1 if event == "call" else -1)
        if code.co_name[0] != "<" and ("aws_" in script or inside[0]):
            seen[-1].add((code.co_filename.split(f"{os.sep}harness{os.sep}")[-1], code.co_qualname))
        if event == "return" and code.co_qualname == "LocalNodes.commit" and "aws_" in script:
            seen.append(set())

    sys.argv, sys.path[0] = [script, *words], str(Path(script).parent)
    sys.setprofile(note)
    runpy.run_path(script, run_name="__main__")
    sys.setprofile(None)
    print("\n" + json.dumps(sorted(seen[4 if "aws_" in script else 0])))  # root, levels 0, 1, 2, then level 3


def walked(tree: Path, scratch: Path) -> dict[str, list[list[str]]]:
    """Return the (file, function) pairs of a third level and of a final training in the checkout `tree`."""
    common = ["--offline", "--runs", str(scratch / "runs")]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}

    def run(script: str, words: str, *more: str) -> str:
        path, *rest = words.split()
        command = [sys.executable, script, *([str(tree / "recipes" / path)] if script == __file__ else [path]), *rest]
        done = subprocess.run([*command, *more], env=environment, cwd=tree, text=True, capture_output=True)
        return done.stdout if done.returncode == 0 else sys.exit(done.stderr)

    run(str(tree / "tools/prepare_data.py"), "digits", "--out", str(scratch))
    level = run(__file__, SEARCH, "--data.directory", str(scratch), *common)
    ticket = max(json.loads(p.read_text())["key"] for p in (scratch / "runs").glob("level-*/record.json"))
    final = run(__file__, FINAL, ticket, *common)
    return {"level": json.loads(level.splitlines()[-1]), "final": json.loads(final.splitlines()[-1])}


def read(tree: Path) -> dict[str, int]:
    """Return what the sources say: loose files, floors, public class names defined twice, lines asking a flag."""
    rooms: dict[str, set[str]] = {}
    classes: Counter[str] = Counter()
    asked = 0
    for path in (path for top in ("harness", "recipes", "tools") for path in (tree / top).rglob("*.py")):
        parts, nodes = path.relative_to(tree).with_suffix("").parts, list(ast.walk(ast.parse(path.read_text())))
        classes.update(node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_")
        flags = (node for node in nodes if isinstance(node, ast.Attribute) and node.attr in FLAGS)
        lines = {node.lineno for node in flags if "method" in ast.unparse(node.value).lower()}
        asked += len(lines) if parts[:2] != ("harness", "pruning") else 0
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        names = [f"{node.module}.{alias.name}".split(".") for node in froms for alias in node.names]
        if parts[0] == "harness" and parts[1] != "__init__":
            rooms.setdefault(parts[1], set()).update(name[1] for name in names if name[0] == "harness")

    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in rooms[room] & rooms.keys() - {room}), default=0)

    loose = {path.stem for path in (tree / "harness").glob("*.py")} - {"__init__"}
    twice = sum(count > 1 for count in classes.values())
    return {"loose files": len(loose), "floors": max(map(floor, rooms)), "class names twice": twice, "flags": asked}


def main() -> None:
    """Print the table; with --against, of another revision beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REVISION")
    parser.add_argument("--list", action="store_true", help="name every function of the level and the final training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trees = [HERE]
        if options.against:
            trees.insert(0, Path(scratch) / "before")
            archive = subprocess.run(["git", "archive", options.against], cwd=HERE, check=True, capture_output=True)
            trees[0].mkdir()
            subprocess.run(["tar", "x"], cwd=trees[0], input=archive.stdout, check=True)
        for tree in trees:
            numbers = read(tree)
            for part, pairs in walked(tree, Path(tempfile.mkdtemp(dir=scratch))).items():
                numbers |= {f"{part}: functions": len(pairs), f"{part}: files": len({file for file, _ in pairs})}
                if options.list and tree == HERE:
                    print(*(f"{part}: {file} {name}" for file, name in pairs), sep="\n")
            print(options.against if tree != HERE else "here", numbers)


if __name__ == "__main__":
    trace(*sys.argv[1:]) if len(sys.argv) > 1 and sys.argv[1].endswith(".py") else main()
