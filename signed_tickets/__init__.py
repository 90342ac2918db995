"""The package `harness` under the name of its distribution.

`import signed_tickets.masks.mask` gives the very module `harness.masks.mask`. So each module exists once, and
`isinstance` holds whichever name a program uses. Other projects have packages called harness, too: use this name.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any, cast

import harness
from harness import __all__ as __all__
from harness import __version__ as __version__

if TYPE_CHECKING:
    from harness import *  # noqa: F403

_TARGET = "harness"
_HERE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_FOUND = os.path.dirname(os.path.dirname(os.path.realpath(harness.__file__ or "")))
if _FOUND != _HERE:
    raise ImportError(
        f"signed_tickets needs the package harness beside it in {_HERE}, but Python imports that of {_FOUND}; "
        "remove it from the path, or start Python in another directory"
    )


class _Loader(Loader):
    """Loads an alias: returns the module of `harness`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Import the module under its own name and return it."""
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Restore the module's own specification, which the import system has replaced. `reload` needs it."""
        module.__spec__ = self._spec

    def get_code(self, name: str) -> Any:
        """Return the code of the module, for `python -m`."""
        spec = importlib.util.find_spec(self._name)
        return None if spec is None else cast(Any, spec.loader).get_code(self._name)


class _Finder(MetaPathFinder):
    """Finds `signed_tickets.x` where `harness.x` is."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of an alias, or None for other modules. The module itself is not imported."""
        package, _, rest = name.partition(".")
        if package != __name__ or not rest:
            return None
        found = importlib.util.find_spec(f"{_TARGET}.{rest}")
        if found is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, _Loader(found.name), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        spec.has_location = found.has_location
        return spec


def __getattr__(name: str) -> Any:
    """Return a public name of `harness`, imported on first use."""
    try:
        return getattr(harness, name)
    except AttributeError as error:
        raise AttributeError(str(error).replace(f"{_TARGET!r}", f"{__name__!r}", 1)) from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]


# The finder must come before that of files, which would import each module a second time. A reload replaces it.
sys.meta_path[:] = [_Finder(), *(one for one in sys.meta_path if type(one).__module__ != __name__)]
__path__ = [*dict.fromkeys([*__path__, *harness.__path__])]  # noqa: F405  # for pkgutil
