# SPDX-License-Identifier: Apache-2.0
"""eval/run.py names every experiment and no other thing; topics stand for themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import run

ROOT = Path(__file__).resolve().parents[2]
EVAL = ROOT / "eval"
DOCUMENTS = (
    "CONTRIBUTING.md",
    "README.md",
    "eval/README.md",
    "eval/RESULTS.md",
    "eval/gpu_runs.md",
    "zoo/README.md",
)
MODULES = sorted((EVAL / "experiments").rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_without_a_name_all_are_listed(capsys):
    assert run.main([]) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == list(run.EXPERIMENTS)
    assert all(len(line.split()) > 4 for line in lines)  # what it measures, in words


def test_an_unknown_name_is_refused(capsys):
    assert run.main(["c4", "--quick"]) == 2
    said = capsys.readouterr().err
    assert "'c4'" in said and "c3-kodak" in said


@pytest.mark.parametrize("name", run.EXPERIMENTS)
def test_a_name_is_of_a_module_with_main(name):
    main = importlib.import_module(run.EXPERIMENTS[name]).main
    assert list(inspect.signature(main).parameters) == ["argv"]


def test_the_arguments_and_the_exit_code_are_the_experiments(monkeypatch):
    module = importlib.import_module(run.EXPERIMENTS["critic"])
    monkeypatch.setattr(run.sys, "argv", ["eval/run.py"])
    monkeypatch.setattr(module, "main", lambda argv: len(argv))
    assert run.main(["critic", "--data", "x"]) == 2
    assert run.sys.argv == ["eval/run.py critic"]  # what argparse calls the program
    monkeypatch.setattr(module, "main", lambda argv: None)
    assert run.main(["critic"]) == 0


def test_all_that_measures_has_a_name():
    """Every module that has a `main` is one of EXPERIMENTS."""
    found = set()
    for path in MODULES:
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree(path).body):
            found.add(".".join(path.relative_to(EVAL).with_suffix("").parts))
    assert found == set(run.EXPERIMENTS.values()) - {"papers.documents"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(EVAL / "experiments")))
def test_no_topic_imports_another(path):
    """Nor the documents: of papers only `claim`, which says what a claim is."""
    topic = path.relative_to(EVAL / "experiments").parts[0]
    imported = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in imported:
        first, *rest = name.split(".")
        if first == "experiments":
            assert rest[:1] in ([], [topic]), f"{path.name} imports {name}"
        elif first == "papers":
            assert rest[:1] in ([], ["claim"]), f"{path.name} imports {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_paths_of_the_documents_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    names = re.findall(r"python eval/run\.py ([\w-]+)", text)
    assert set(names) - {"NAME"} <= set(run.EXPERIMENTS)
    paths = re.findall(r"`((?:python )?eval/[\w/]+(?:\.py|\.md|/|(?=`)))", text)
    assert [path for path in paths if not (ROOT / path.removeprefix("python ")).exists()] == []
