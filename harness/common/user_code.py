"""Execute a user's Python file. The caller has decided that it may be executed (see trusted.py).

A file is executed under a private name, and nothing is written beside it. Keys and trust cover its own content only. So
it can import installed packages, but no module beside it, whose changes no key would show.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness.common.escape import one_line

MOST_BYTES = 1 << 20
"""Larger Python files are refused."""
_OURS = ("harness", "signed_tickets")


class UserCode:
    """A user's Python file that was executed.

    Example:
        >>> code = UserCode(b"def build(width): return 2 * width", "net.py", "network")
        >>> code.call(code.function("build"), width=3)
        6
    """

    def __init__(self, content: bytes, path: str, purpose: str) -> None:
        """Execute the file.

        Args:
            content: Content of the file.
            path: Its path, for messages, tracebacks and its variable `__file__`.
            purpose: Part of the module's private name.

        Raises:
            ValueError: The file raises an error, or imports a module beside it. The message has file and line.
        """
        # Phase: refuse imports of modules beside it, before any code is executed.
        self.path = path
        name = f"_{purpose}_{sha256(content).hexdigest()[:16]}"
        try:
            self._tree = ast.parse(content, path)
        except Exception as error:
            raise ValueError(told(error, path)) from error
        self._refuse_neighbours()

        # Phase: execute it. The name is registered, because dataclasses and pickle look up the module of a class.
        module = types.ModuleType(name)
        module.__file__ = path
        before, sys.modules[name] = sys.modules.get(name), module
        try:
            self._run(lambda: exec(compile(self._tree, path, "exec"), module.__dict__))
        except BaseException as error:
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before
            if not isinstance(error, _CodeError):
                raise
            hint = ""
            if isinstance(error.__cause__, ImportError):
                hint = "; it can import installed packages, but not the files beside it"
            raise ValueError(f"{error}{hint}") from error.__cause__
        self.module = module

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function of the file.

        Raises:
            ValueError: There is none of this name. The message has the names of all functions.
        """
        found: Any = getattr(self.module, name, None)
        if not callable(found):
            named = [name for name, value in vars(self.module).items() if isinstance(value, types.FunctionType)]
            raise ValueError(f"{self.path} has no function {name!r}; it has {', '.join(named) or 'none'}")
        function: Callable[..., Any] = found
        return function

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of the file.

        Raises:
            ValueError: It raises an error, ends the process, or imports a module beside the file. The message has file,
                line and arguments.
        """
        try:
            return self._run(lambda: function(*arguments, **options))
        except _CodeError as error:
            given = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in options.items())]
            called = f"{getattr(function, '__name__', type(function).__name__)}({', '.join(given)})"
            raise ValueError(f"{error}, called as {called}") from error.__cause__

    def _run(self, code: Callable[[], Any]) -> Any:
        try:
            made = code()
        except (Exception, SystemExit) as error:
            raise _CodeError(told(error, self.path)) from error
        self._refuse_neighbours()  # a changed sys.path can have let it import one
        return made

    def _refuse_neighbours(self) -> None:
        """Raise ValueError if the file imports a module beside it."""
        for line, name in _imported(self._tree):
            if (found := _beside(name, Path(self.path))) is not None:
                raise ValueError(
                    f"{self.path}, line {line}: imports {name} from {found}; it can import installed packages, but not "
                    "the files beside it, whose changes no key would show: copy their code into it"
                )


class _CodeError(ValueError):
    """An error that the user's code raised. Its cause is that error."""


def told(error: BaseException, path: str) -> str:
    """Return one line about an error in a user's file: path, line, kind and message."""
    where = path
    if isinstance(error, SyntaxError):
        where = f"{error.filename or path}, line {error.lineno or 1}"
    elif lines := [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]:
        where = f"{path}, line {lines[-1]}"
    return f"{where}: {type(error).__name__}: {one_line(first_line(error))}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters."""
    return (str(error).splitlines() or ["no message"])[0][:300]


# ------------------------------------------------------------------ imports


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and top-level name of each absolute import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def _beside(name: str, path: Path) -> Path | None:
    """Return the path of a module that lies beside a file or in the working directory, and is not installed."""
    if name in _OURS:
        return None
    found = None
    with contextlib.suppress(Exception):  # finders of other libraries can fail in any way
        spec = importlib.util.find_spec(name)
        places = [*((spec.submodule_search_locations or ()) if spec else ())]
        if spec is not None and spec.has_location and spec.origin:
            places.insert(0, spec.origin)
        found = Path(places[0]).resolve() if places else None
    if found is None or any(found.is_relative_to(root) for root in _installed_roots()):
        return None
    folders = [path.resolve().parent]
    with contextlib.suppress(OSError):
        folders.append(Path.cwd())
    near = any(found.is_relative_to(folder) for folder in folders)
    return found if near and name not in _installed_names() else None


@cache
def _installed_roots() -> tuple[Path, ...]:
    """Return the directories of the standard library and of installed packages."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(path).resolve() for path in paths if path)


@cache
def _installed_names() -> frozenset[str]:
    """Return the modules of installed packages. Editable ones lie elsewhere."""
    return frozenset(importlib.metadata.packages_distributions())
