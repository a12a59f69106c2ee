"""Wrapping methods of HTTP libraries while runs are made, whether the library is imported already or later."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Seam:
    """Where calls of a library pass by.

    Attributes:
        modules: names of the modules that hold the classes.
        wrappers: for such a module, once imported: class, name of its method, and what makes the replacement of it.
    """

    modules: tuple[str, ...]
    wrappers: Callable[[Any], Iterable[tuple[Any, str, Callable[[Any], Any]]]]


@contextlib.contextmanager
def installed(seams: Sequence[Seam]) -> Iterator[None]:
    """Wrap the methods while open: of the libraries already imported now, of the others when they are."""
    by_module = {module: seam for seam in seams for module in seam.modules}
    wrapped: list[tuple[type, str, Any, Any]] = []

    def wrap(module: types.ModuleType) -> None:
        for owner, name, make in by_module[module.__name__].wrappers(module):
            # One class may be reachable by two names (an alias of one library for the other).
            if not isinstance(owner, type) or any((owner, name) == known[:2] for known in wrapped):
                continue
            original = owner.__dict__[name]
            replacement = make(original)
            wrapped.append((owner, name, original, replacement))
            setattr(owner, name, replacement)

    for module in by_module:
        found = sys.modules.get(module)
        # An alias: the module of one library under the name of another, which is wrapped under its own.
        if found is not None and found.__name__ in by_module:
            wrap(found)
    finder = _ImportWatch([name for name in by_module if name not in sys.modules], wrap)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for owner, name, original, replacement in wrapped:
            # What somebody put on top of ours stays; ours passes everything through when no run is active.
            if owner.__dict__.get(name) is replacement:
                setattr(owner, name, original)


class _ImportWatch(importlib.abc.MetaPathFinder):
    """Tells when a library is imported. Importing it ourselves would cost time, and break an alias set up later."""

    def __init__(self, names: list[str], imported: Callable[[types.ModuleType], None]) -> None:
        self._names = names
        self._imported = imported

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Watched(spec.loader, self._imported)
                return spec
        return None


class _Watched(importlib.abc.Loader):
    def __init__(self, loader: Any, imported: Callable[[types.ModuleType], None]) -> None:
        self._loader = loader
        self._imported = imported

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        found: types.ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)
