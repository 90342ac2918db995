"""Hooks of MkDocs for the documentation site (mkdocs.yml).

Pages in docs/ link to each other and to files of the repository, as on GitHub. Linked files outside docs/ become pages
of the site, so that it is complete without a network. The reference is made from docstrings, and the notebook page from
the executed notebook.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import harness
from harness import config
from harness.cli import compare, tickets
from harness.cli.lineage import main as lineage

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXECUTED = ROOT / "build" / "notebooks"
"""Notebooks as `make docs` has executed them. Without one, the page shows the stored outputs."""

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^()\s#]+)(?P<after>(#[^()\s]*)?\))")
_FOREIGN = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//(?!127\.)[^>]*>")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".json": "json", ".sbatch": "bash", ".sh": "bash"}

# Pages of the reference: title, introduction, objects. Public names that no page lists are added to the first.
_REFERENCE: dict[str, tuple[str, str, list[str]]] = {
    "launch": (
        "Search, train, compare",
        "Run searches, final trainings and comparisons as recipes do. [From Python](../python.md) shows them together.",
        [f"harness.{name}" for name in ("launch", "search", "final_training", "Trial", "compare")],
    ),
    "masks": (
        "Masks and checkpoints",
        "Use a signed mask, and read what a run made.",
        [f"harness.{n}" for n in ("SignedMask", "Mask", "load_signed_mask", "load_checkpoint", "load_network")],
    ),
    "pruner": (
        "SignPruner",
        "Prune in your own training loop. [AWS in your own loop](../python.md#aws-in-your-own-loop) introduces it.",
        ["harness.SignPruner", "harness.pruner.Level"],
    ),
    "lineage": (
        "Lineage",
        "Query, compare, export and verify runs. [Lineage](../lineage.md) shows the same from the command line.",
        [f"harness.lineage.{name}" for name in sorted(harness.lineage.__all__, key=str.swapcase)],
    ),
    "config": ("Settings", "Each field with its default. Every field is also an option of recipes.", []),
    "modules": (
        "Sub-modules",
        "Parts that your own code may use besides the public names.",
        [
            "harness.training.batchnorm",
            "harness.models.partition",
            "harness.masks.transfer",
            "harness.pruning.method",
            "harness.pruning.magnitude",
            "harness.checkpoint",
            "harness.data.prepare",
        ],
    ),
}


_RECIPE = "aws_digits"
_SUBCOMMANDS = {"compare": tuple(compare.COMPARISONS), "lineage": tuple(lineage.COMMANDS)}


class Doctests(griffe.Extension):
    """Let `Example:` with doctest lines be shown as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section to the one that griffe parses."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)


# ---- files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no file of docs/."""
    made: dict[str, str | bytes] = {f"reference/{name}.md": text for name, text in _reference_pages()}
    made["reference/commands.md"] = _commands_page()
    made |= {page: _shown(path) for path, page in _outside().items()}
    for path in sorted(DOCS.glob("notebooks/*.ipynb")):
        made |= _notebook(path)
    made["site.css"] = (ROOT / "tools" / "site.css").read_text(encoding="utf-8")
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to files outside docs/ at their pages, and set what a page shows beside its text."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    if page.file.src_uri.startswith("results/superseded/"):
        page.meta["search"] = {"exclude": True}
    origins = {uri: path for path, uri in _outside().items()}
    origin = origins.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if origin in origins.values() and not origin.endswith(".md"):
        return markdown  # source code

    def pointed(link: re.Match[str]) -> str:
        target = _repository_path(origin, link["target"])
        if target is None or _uri(target) is None:
            return link[0]
        relative = posixpath.relpath(str(_uri(target)), posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['before']}{relative}{link['after']}"

    return _LINK.sub(pointed, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse resources from the network: the site must be complete without it."""
    if foreign := _FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads {foreign[0]} from the network; keep the file in docs/")
    return output


@cache
def _outside() -> dict[str, str]:
    """Return linked files outside docs/, by path in the repository, and the URI of the page of each."""
    found: dict[str, str] = {}
    waiting = [*(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")), "CONTRIBUTING.md", "CHANGELOG.md"]
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            if path in found:
                continue
            found[path] = f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            targets = (_repository_path(path, link["target"]) for link in _LINK.finditer(text))
            waiting += [target for target in targets if target and not target.startswith("docs/")]
    return found


def _repository_path(origin: str, target: str) -> str | None:
    """Return the file that a link names, relative to the repository. None if it is no such file."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _uri(path: str) -> str | None:
    """Return the site's URI of a file of the repository."""
    if path.startswith("docs/"):
        uri = path.removeprefix("docs/")
        return re.sub(r"\.ipynb$", ".md", uri)
    return _outside().get(path)


def _shown(path: str) -> str:
    """Return a page that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n````{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"


# ---- notebooks


def _notebook(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook and its pictures, by URI."""
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    executed = EXECUTED / path.name
    body, resources = exporter.from_filename(str(executed if executed.is_file() else path))
    pictures = {f"notebooks/{name}": data for name, data in resources["outputs"].items()}
    return {f"notebooks/{path.stem}.md": body, **pictures}


# ---- reference


def _commands_page() -> str:
    """Return the page with the help of all commands."""
    # Phase: names of commands. One whose module is missing is left out, as are recipes besides one.
    calls = [""]
    for name in tickets.COMMANDS:
        if name in tickets.HOMES and not find_spec(tickets.HOMES[name]):
            continue
        calls += [f"search {_RECIPE}"] if name == "search" else [name]
        calls += [f"{name} {own}" for own in _SUBCOMMANDS.get(name, ())]

    # Phase: ask each for its help.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(_help, calls))
    intro = f"All recipes have the options of `{_RECIPE}`. [Install](../install.md) names the same commands of a clone."
    sections = [f"## tickets {call}\n\n```text\n{text}```" for call, text in zip(calls, texts, strict=True)]
    return "\n\n".join(["# Commands", intro, *sections]).replace("## tickets \n", "## tickets\n")


def _help(call: str) -> str:
    """Return what `tickets CALL --help` prints."""
    words = [sys.executable, "-m", "signed_tickets", *call.split(), "--help"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=DOCS, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise PluginError(f"tickets {call} --help failed: {done.stderr.strip()}")
    return done.stdout


def _reference_pages() -> Iterator[tuple[str, str]]:
    """Yield name and Markdown of each page of the reference."""
    # Phase: settings and public names that no page lists.
    pages = {name: (title, intro, list(objects)) for name, (title, intro, objects) in _REFERENCE.items()}
    settings = [name for name in config.__all__ if is_dataclass(getattr(config, name))]
    pages["config"][2].extend(f"harness.config.{name}" for name in settings)
    listed = {name for _, _, objects in pages.values() for name in objects}
    public = [f"harness.{name}" for name in harness.__all__ if name != "lineage"]
    pages["launch"][2].extend(name for name in public if name not in listed)

    # Phase: pages.
    table = ["# Reference", "", "Public names of `import harness`. `signed_tickets` is the same package.", ""]
    table += ["| page | objects |", "|---|---|"]
    for name, (title, intro, objects) in pages.items():
        table.append(f"| [{title}]({name}.md) | {', '.join(f'`{_short(one)}`' for one in objects)} |")
        yield name, "\n\n".join([f"# {title}", intro, *map(_directive, objects)])
    yield "index", "\n".join(table) + "\n"


def _short(name: str) -> str:
    return name if name in _REFERENCE["modules"][2] else name.rpartition(".")[2]


def _directive(name: str) -> str:
    return f"::: {name}\n"
