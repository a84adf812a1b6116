# SPDX-License-Identifier: Apache-2.0
"""The public names are there and imports point down only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import compressai_sga

PACKAGE = Path(compressai_sga.__file__).parent
ORDER = (
    *(
        "errors",
        "endings",
        "lazy",
        "typing",
        "version",
        "wrappers",
        "copies",
        "inputs",
        "precision",
        "lmbda",
        "progress",
        "json_lines",
        "journal",
    ),
    *("zoo_files", "zoo_records"),
    *("relaxations", "schedules"),
    *("coding", "diffusion", "metrics", "channels", "refine"),
    *("models", "zoo_joint", "zoo", "catalogue", "files", "evaluation", "tasks", "comparison", "hooks"),
    *("compressai_sga", "__main__"),
)  # a room imports from those before it only


def test_public_names():
    names = "refine refined RefineConfig RefineResult METHODS PRESETS zoo errors hooks __version__"
    assert set(compressai_sga.__all__) == set(names.split())
    assert all(hasattr(compressai_sga, name) for name in compressai_sga.__all__)
    assert callable(compressai_sga.refine)
    assert re.fullmatch(r"\d+\.\d+\.\d+", compressai_sga.__version__)


def test_type_checkers_see_the_types():
    assert (PACKAGE / "py.typed").is_file()
    assert 'PACKAGE: ["py.typed"]' in (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")


def test_rooms_stand_in_one_order():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(ORDER) - {"compressai_sga"}
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if ORDER.index(room(target)) > ORDER.index(room(name))
    ]
    assert wrong == []


def test_no_file_imports_itself_through_others():
    graph, done = imports(), set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def room(name: str) -> str:
    return (name.split(".") + [""])[1] or "compressai_sga"


def imports() -> dict[str, set[str]]:
    """Modules of the package, and what each imports of it, wherever in the file that stands."""
    paths = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                modules = [f"{base}.{alias.name}" for alias in node.names]
                wanted = [module if module in paths else base for module in modules]
            else:
                continue
            found[name] |= {module for module in wanted if module in paths and module != name}
    return found
