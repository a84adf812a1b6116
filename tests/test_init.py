# SPDX-License-Identifier: Apache-2.0
"""The public names are there and imports point down only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import compressai_sga

PACKAGE = Path(compressai_sga.__file__).parent
LEVELS = (  # a file may import from its own level and from those after it
    {"__init__", "__main__"},
    {"files", "hooks", "zoo", "zoo_joint"},
    {"models", "refine"},
    {"diffusion", "channels", "coding"},
    {"relaxations", "schedules"},
    {"typing", "errors", "zoo_files"},
)


def test_public_names():
    names = "refine refined RefineConfig RefineResult METHODS PRESETS zoo errors hooks __version__"
    assert set(compressai_sga.__all__) == set(names.split())
    assert all(hasattr(compressai_sga, name) for name in compressai_sga.__all__)
    assert callable(compressai_sga.refine)
    assert re.fullmatch(r"\d+\.\d+\.\d+", compressai_sga.__version__)


def test_type_checkers_see_the_types():
    assert (PACKAGE / "py.typed").is_file()
    assert 'package_data={PACKAGE: ["py.typed"]}' in (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")


def test_imports_point_down_only():
    levels = {name: level for level, names in enumerate(LEVELS) for name in names}
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, parts):
                own = parts[0]
                if target == own or (own in ("hooks", "__main__") and target == "metrics"):
                    continue
                allowed = (
                    target in ("typing", "errors")
                    if own == "metrics"
                    else target in levels and levels[target] >= levels.get(own, len(LEVELS))
                )
                if not allowed and not (own == "hooks" and target == "__init__"):
                    wrong.append(f"{'/'.join(parts)} imports {target}")
    assert not wrong


def _targets(node: ast.AST, parts: tuple[str, ...]) -> list[str]:
    """Top-level parts of this package that an import statement names."""
    if isinstance(node, ast.Import):
        modules = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module.split(".") if node.module else []
        if node.level:
            package = ["compressai_sga", *parts[:-1]]
            base = package[: len(package) - node.level + 1] + base
        modules = [[*base, alias.name] for alias in node.names] if len(base) == 1 else [base]
    else:
        return []
    own = [module for module in modules if module[0] == "compressai_sga" and len(module) > 1]
    return ["__init__" if module[1].startswith("__") else module[1] for module in own]
