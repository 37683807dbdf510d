"""contracts - a kind of contract that import-linter lacks; pyproject.toml names it as `shelf`.

Idea      An entry of a shelf is a file (no folder) whose name has no leading underscore. No file of its folder imports it,
          the folder's `__init__` included; what entries share has an underscore. So any entry can be taken away.
Traps     import-linter's own `independence` follows chains through `__init__` and knows no pattern for the underscore.
"""

from typing import Any

from importlinter import Contract, ContractCheck, fields, output


class ShelfContract(Contract):
    """Files of a shelf do not import each other."""

    type_name = "shelf"
    shelves = fields.ListField(subfield=fields.ModuleField())

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        """Find the imports of entries from within their own folders."""
        found: list[tuple[str, str]] = []
        for shelf in (module.name for module in self.shelves):  # type: ignore[attr-defined]
            inside = {shelf, *graph.find_descendants(shelf)}
            files = [m for m in graph.find_children(shelf) if not graph.find_children(m)]
            entries = [m for m in files if not m.rpartition(".")[2].startswith("_")]
            found += [(who, e) for e in entries for who in graph.find_modules_that_directly_import(e) & inside - {e}]
        return ContractCheck(kept=not found, metadata={"found": sorted(found)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Say who imports whom."""
        for who, entry in check.metadata["found"]:
            output.print_error(f"{who} imports {entry}, which stands on the same shelf.")
