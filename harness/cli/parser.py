"""The command-line parser that all commands share: tyro with readable help.

Help shows `X | None` as X, lists the names that an option accepts, and keeps lists of entries on lines of their own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import zip_longest
from types import NoneType
from typing import Annotated, Any, Literal, SupportsIndex, Union, cast, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
)

from harness.cli.errors import let_readers_go, quiet_help
from harness.cli.names import datasets, methods, networks
from harness.common.escape import accept_any_text
from harness.common.program import usage_name, worded
from harness.common.tables import print_fields, print_lines
from harness.config import known

SYNONYMS = (("--network", "--model.name"), ("--dataset", "--data.name"))
"""Pairs of option names with one meaning. A command that accepts one name accepts the other."""


@dataclass(frozen=True)
class _Shown:
    """How help presents one field. Without a metavar, it shows the field's type."""

    metavar: str | None
    names: Callable[[], Sequence[str]] = tuple
    """Returns the names that the field accepts."""
    aliases: tuple[str, ...] = ()
    text: str | None = None
    """Help instead of the field's own, for a subclass in which it means more."""


_RUN_OF_PAIR = "Run ID or key of a level or a final training, or a unique prefix of it. It is the end α = "
_FIELDS = {
    ("DataConfig", "name"): _Shown("NAME", datasets, ("--dataset",)),
    ("ModelConfig", "name"): _Shown("NAME", networks, ("--network",)),
    ("ModelConfig", "args"): _Shown("NAME=VALUE ..."),
    ("ModelConfig", "classifier"): _Shown("MODULE"),
    ("SearchConfig", "method"): _Shown("NAME", methods),
    ("TicketConfig", "data"): _Shown("NAME", datasets, ("--data.name", "--dataset")),
    ("TicketConfig", "ticket"): _Shown("RUN"),
    ("FigureOptions", "dataset"): _Shown("NAME", aliases=("--data.name",)),
    ("FigureOptions", "network"): _Shown("NAME", aliases=("--model.name",)),
    ("List", "network"): _Shown("NAME", aliases=("--model.name",)),
    ("OneRun", "first"): _Shown("RUN"),
    ("RunPair", "first"): _Shown("RUN_A", text=f"{_RUN_OF_PAIR}1."),
    ("RunPair", "second"): _Shown("RUN_B", text=f"{_RUN_OF_PAIR}0."),
    ("RunPair", "dense"): _Shown("RUN ..."),
    ("List", "method"): _Shown("NAME", methods),
    ("List", "kind"): _Shown("NAME"),
    ("List", "density"): _Shown("RANGE"),
    ("List", "since"): _Shown("DATE|AGE"),
    ("ComparisonConfig", "bn_images"): _Shown("N|all"),
    ("*", "experiment"): _Shown("NAME"),
    ("*", "initialisation"): _Shown("SCHEME|RUN|FILE"),
    ("*", "tracking_uri"): _Shown("URL"),
    ("*", "ui"): _Shown("URL"),
    ("*", "settings"): _Shown("TAG ..."),
    ("*", "study"): _Shown("NAME"),
    ("*", "rev"): _Shown("REVISION"),
    **{(name, "run_id"): _Shown("RUN") for name in ("Show", "Tree", "Ancestors", "Descendants", "Verify", "Ui")},
    **{(name, "run_ids"): _Shown("RUN ...") for name in ("Page", "Export", "Bundle")},
    ("Path", "start"): _Shown("RUN_A"),
    ("Path", "end"): _Shown("RUN_B"),
    ("Diff", "first"): _Shown("RUN_A"),
    ("Diff", "second"): _Shown("RUN_B"),
    ("Import", "directory"): _Shown("DIRECTORY"),
    ("ExportRun", "run_id"): _Shown("RUN"),
    ("ExportRun", "repo"): _Shown("USER/NAME"),
    ("ExportRun", "licence"): _Shown("NAME", aliases=("--license",)),
    ("Pull", "repository"): _Shown("USER/NAME[@REVISION]"),
    ("Pages", "pages"): _Shown("DIRECTORY ..."),
}
"""Fields, by class and name, whose help shows more than their type. The class "*" is any."""

_MAIN: tuple[str, ...] = ("method", "num_levels", "init_seed", "sgd_seed", "warmup_epochs", "level_epochs")
_MAIN += ("global_batch_size", "pruning_fraction", "runs", "experiment", "offline", "precision", "model", "data")
"""Fields of a search that its help shows first, in this order."""


def parse_command(
    command: Any, *, description: str | None, arguments: Sequence[str] | None = None, default: Any = None
) -> Any:
    """Parse a command line.

    Args:
        command: Dataclass, function, or mapping from subcommand names to dataclasses.
        description: Text above the options. A line with an entry, such as `Time   5 minutes`, stays a line.
        arguments: Words to parse. None means those of the process.
        default: Default instance of the dataclass.

    Raises:
        ValueError: Two names of one option have different values.
    """
    accept_any_text()
    let_readers_go()
    words = list(sys.argv[1:] if arguments is None else arguments)
    check_synonyms(words)
    with _registry(), quiet_help():
        if isinstance(command, Mapping):
            if words and words[0] in command and not {"-h", "--help"} & set(words):
                # Building the parsers of all other subcommands would take most of the time of a short command.
                return tyro.cli(command[words[0]], prog=f"{usage_name()} {words[0]}", args=words[1:])
            return tyro.extras.subcommand_cli_from_dict(
                dict(command), prog=usage_name(), description=laid_out(description), args=words
            )
        start = {} if default is None else {"default": default}
        return tyro.cli(command, prog=usage_name(), description=laid_out(description), args=words, **start)


def print_commands(usage: str | None, text: str | None, names: Mapping[str, str], title: str = "commands") -> None:
    """Print help that lists names, each with one line.

    Args:
        usage: The usage line, without "usage:".
        text: Text above the list.
        names: Name → its line.
        title: Title of the list.
    """
    if usage:
        print_lines(f"usage: {usage}")
    if text:
        print_lines("", *text.strip().split("\n"))
    if names and (usage or text):
        print_lines("")
    if names:
        print_fields([(name, line) if line else (name,) for name, line in names.items()], title=title)


def check_synonyms(words: Sequence[str]) -> None:
    """Raise ValueError if two names of one option have different values."""
    values: dict[str, str] = {}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        values[name.replace("_", "-")] = value if equals else following
    for pair in SYNONYMS:
        first, second = (values.get(name) for name in pair)
        if None not in (first, second) and first != second:
            raise ValueError(
                f"{pair[0]} {first} and {pair[1]} {second} differ; they are one option, so give one of them"
            )


def laid_out(text: str | None) -> str:
    """Return a docstring in which every entry and every command stays on its own line in tyro's help.

    tyro joins a line with the one before it if it begins with a letter. So these lines get two leading spaces, and so
    do the lines that continue them.
    """
    lines, moved = [], False
    for line in worded(text or "").split("\n"):
        begins = re.match(r"\S+( \S+)? {2,}\S|\$ |python |tickets |accelerate ", line) is not None
        moved = begins or (moved and line.startswith(" "))
        lines.append(f"  {line}" if moved else line)
    return _LaidOut("\n".join(lines))


class _LaidOut(str):
    """Help text for tyro, which would show two blank lines above an indented line instead of one."""

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Return the lines, each with the blank lines above it. tyro calls this to join the lines of a paragraph."""
        return re.split(r"(?<!\n)\n", self)


def _registry() -> ConstructorRegistry:
    """Return the rules that make help readable."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_optional)
    registry.primitive_rule(_choice)
    inside = False

    @registry.struct_rule
    def described(info: Any) -> Any:
        nonlocal inside
        if inside or not is_dataclass(info.type):
            return None
        inside = True  # the default rules must see the type, and not this rule again
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return spec
        owners = [*(one.__name__ for one in cast(type, info.type).__mro__), "*"]
        fields = [_described(owners, one) for one in spec.fields]
        if "SearchConfig" in owners:
            fields.sort(key=lambda field: _MAIN.index(field.name) if field.name in _MAIN else len(_MAIN))
        return replace(spec, fields=tuple(fields))

    return registry


def _described(owners: Sequence[str], spec: StructFieldSpec) -> StructFieldSpec:
    """Return the field with the metavar, names and aliases of `_FIELDS`, and its help as one paragraph."""
    text = spec.helptext() if callable(spec.helptext) else spec.helptext
    text = worded(" ".join((text or "").split()))
    if "Command" in owners:  # the fields of `harness.cli.options.parse` have annotations of their own
        return replace(spec, helptext=text)
    shown = next((_FIELDS[owner, spec.name] for owner in owners if (owner, spec.name) in _FIELDS), _Shown(None))
    text = shown.text or text
    if names := shown.names():
        text = f"{text} Choices: {', '.join(names)}."
    argument = tyro.conf.arg(metavar=shown.metavar, aliases=shown.aliases or None, help_behavior_hint=_default_hint)
    return replace(spec, helptext=text, type=cast(Any, Annotated[spec.type, argument]))


def _default_hint(default: str) -> str:
    """Return the words of help about a default. A default without a value is explained by the option's text."""
    return "" if default in ("unset", "", "''", "None") else f"(default: {default})"


def _choice(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Parse a choice of words. An unknown word raises an error that suggests the closest one."""
    names = get_args(info.type)
    if get_origin(info.type) is not Literal or not all(isinstance(name, str) for name in names):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda words: known("value", words[0], names),
        is_instance=lambda value: value in names,
        str_from_instance=lambda value: [value],
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Parse and show `X | None` as X. The word None on the command line stays None."""
    options = get_args(info.type) if get_origin(info.type) is Union or "|" in str(info.type) else ()
    if NoneType not in options:
        return None
    rest: Any = Union.__getitem__(tuple(option for option in options if option is not NoneType))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(rest, set(info.markers)))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None

    def from_words(words: list[str]) -> Any:
        return None if words == ["None"] else spec.instance_from_str(words)

    def to_words(value: Any) -> list[str]:
        return ["unset"] if value is None else spec.str_from_instance(value)

    return replace(
        spec,
        choices=None if spec.choices is None else (*spec.choices, "None"),
        instance_from_str=from_words,
        str_from_instance=to_words,
        is_instance=lambda value: value is None or spec.is_instance(value),
    )
