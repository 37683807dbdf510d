"""shelf - a folder where one file is one entry, found by its file name; plug-ins add entries by entry points.

`names()` lists without importing; `get(name)` imports one. An installed distribution adds to the shelf `methods` with
    [project.entry-points."lowbit.methods"]
    mine = "my_package.mine"
where the value names a module that follows the same contract as a file of the folder.
A name with a number at its end ("int4", "mxfp6") finds its family's file ("int", "mxfp"): `resolve` gives file and number.
A file may be added at any time; what `get` has given once it gives again without looking, a thousand times a block.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from lowbit.core.errors import RequestError, nearest

_FAMILY = re.compile(r"^(?P<family>.*?[^\d.])(?P<number>\d+(\.\d+)?)$")


class Shelf:
    """The entries of one folder.

    package: dotted name of the folder, as "lowbit.methods". kind: the singular word for messages, as "method".
    """

    def __init__(self, package: str, kind: str) -> None:
        self.package = package
        self.kind = kind
        self._given: dict[str, ModuleType] = {}

    @functools.cached_property
    def _plugins(self) -> dict[str, str]:
        return {e.name: e.value for e in importlib.metadata.entry_points(group=self.package)}

    def names(self) -> list[str]:
        """All entries by name, sorted; imports none of them."""
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        files = {m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_") and not m.ispkg}
        return sorted(files | set(self._plugins))

    def __contains__(self, name: str) -> bool:
        return name in self._given or name in self.names()

    def get(self, name: str) -> ModuleType:
        """The module of one entry. Raises RequestError with the nearest names when there is none."""
        if name not in self._given:
            if name not in self:
                raise RequestError(f"Unknown {self.kind} '{name}'. {nearest(name, self.names())}")
            place = self._plugins.get(name, f"{self.package}.{name}")
            self._given[name] = importlib.import_module(place.partition(":")[0])
        return self._given[name]

    def resolve(self, name: str) -> tuple[ModuleType, str]:
        """The module of `name`, or of its family, and the number ("" when the file has the whole name)."""
        match = None if name in self else _FAMILY.match(name)
        if match and match["family"] in self:
            return self.get(match["family"]), match["number"]
        return self.get(name), ""

    def summary(self, name: str) -> str:
        """The first line of an entry's header, read without importing it."""
        if name in self._plugins:
            path = importlib.util.find_spec(self._plugins[name].partition(":")[0])
            source = Path(path.origin) if path and path.origin else None
        else:
            spec = importlib.util.find_spec(self.package)
            folders = (spec.submodule_search_locations or []) if spec else []
            source = next((Path(f) / f"{name}.py" for f in folders if (Path(f) / f"{name}.py").exists()), None)
        if source is None:
            return ""
        text = source.read_text(encoding="utf-8").lstrip()
        return text.split("\n", 1)[0].strip('"').strip()
