# SPDX-License-Identifier: Apache-2.0
"""What the documents say holds: their Python runs, their commands parse, their paths exist.

Python blocks run as they stand, one namespace a document, with any `steps=N` lowered to 2; so do the
indented examples in docstrings of the package that name `compressai_sga.`.
"""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from compressai.models import MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import read_image

import compressai_sga
import compressai_sga.__main__
from compressai_sga import zoo
from compressai_sga.refine import METHODS, PRESETS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "compressai_sga"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EVALUATION = ("eval/RESULTS.md", "eval/README.md", "eval/gpu_runs.md")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "zoo/README.md", *EVALUATION)


def blocks(document: str, language: str) -> list[str]:
    """Fenced blocks of a document in one language ("" for plain ones)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text("utf-8"), re.M | re.S)
    return [text for found, text in fenced if found == language]


def commands(document: str) -> Iterator[list[str]]:
    """Every `python ...` command of a document, in blocks and between backticks, as words."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    for line in lines + re.findall(r"`([^`\n]+)`", text):
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["python"] and "..." not in words:
                yield words[1:]


FOUND = {tuple(words): d for d in DOCUMENTS[::-1] if (ROOT / d).is_file() for words in commands(d)}
COMMANDS = sorted((document, *words) for words, document in FOUND.items())  # each once, of the first document


def docstring_examples() -> Iterator[tuple[str, str]]:
    """(file, code) of the indented blocks in the package's docstrings that name the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for block in re.findall(r"(?:^ {4,}.*\n)+", (ast.get_docstring(node) or "") + "\n", re.M):
                code = [line[4:] for line in block.splitlines() if "python -m" not in line]
                code = [line.removeprefix(">>> ") for line in code]
                if any("compressai_sga." in line for line in code):
                    yield path.relative_to(ROOT).as_posix(), "\n".join(code)


EXAMPLES: dict[str, str] = {}
for _where, _code in docstring_examples():
    EXAMPLES[_where] = EXAMPLES.get(_where, "") + _code + "\n"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What an example may take for granted."""
    image = read_image(zoo.sample_images()[0])[None, :, :64, :64]
    record = next(r for r in zoo.list_models() if r.name == zoo.DEFAULT_MODEL)
    return {
        "compressai_sga": compressai_sga,
        "safetensors": safetensors,
        "MeanScaleHyperprior": MeanScaleHyperprior,
        "FILE": zoo._folder() / record.file,
        "model": zoo.load(),
        "x": image,
    }


def run(code: str, names: dict[str, Any], where: str) -> None:
    exec(compile(re.sub(r"\bsteps=\d+", "steps=2", code), where, "exec"), names)


def test_the_readme_has_examples():
    code = "\n".join(blocks("README.md", "python"))
    assert all(word in code for word in ("refine(", "refined(", "decompress(", "image_models["))
    takers = ("refine(", "refined(", 'image_models["c3', 'load("hfd-', 'load("diffc-')
    fits = sum(code.count(word) for word in takers)
    assert code.count("steps=") == fits


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if (ROOT / d).is_file()])
def test_python_blocks_run(document, names, capsys):
    own = dict(names)
    for number, code in enumerate(blocks(document, "python")):
        run(code, own, f"{document}, block {number + 1}")
    if document == "README.md":
        assert own["result"].after.loss <= own["result"].before.loss
        assert own["out"]["shape"] == own["result"].shape
        assert type(own["net"]) is MeanScaleHyperprior and "True" in capsys.readouterr().out


@pytest.mark.parametrize("where", EXAMPLES)
def test_docstring_examples_run(where, names):
    run(EXAMPLES[where].replace('method="ssl"', 'method="ssl", steps=2'), dict(names), where)


def test_the_package_has_docstring_examples():
    assert {"compressai_sga/__init__.py", "compressai_sga/zoo.py"} <= set(EXAMPLES)


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> str:
    """What the command that these words start says to --help; fails where there is no such command."""
    before = set(sys.modules)
    with pytest.raises(SystemExit) as stop:
        if words[0] == "-m":
            module = words[1]
            ours = {command.name for command in compressai_sga.__main__.COMMANDS} - {"eval_model"}
            if module == "compressai_sga" and ours.intersection(words[2:3]):
                compressai_sga.__main__.main([words[2], "--help"])
            elif module in ("compressai_sga", "compressai.utils.eval_model"):
                compressai_sga.hooks.enable()
                module = "compressai.utils.eval_model"
                sources = [w for w in words if w in ("pretrained", "checkpoint")][:1]
                importlib.import_module(f"{module}.__main__").main([*sources, "--help"])
            else:
                monkeypatch.setattr(sys, "argv", [module, "--help"])
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            script = ROOT / words[0]
            monkeypatch.setattr(sys, "argv", [str(script), "--help"])
            monkeypatch.syspath_prepend(str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    for name in set(sys.modules) - before:  # a script's neighbours have plain names
        if "." not in name and (ROOT / words[0]).parent.joinpath(f"{name}.py").is_file():
            del sys.modules[name]
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_take_their_options(command, capsys, monkeypatch):
    document, *words = command
    if words[0] == "setup.py" or words[:2] in (["-m", "venv"], ["-m", "pytest"]):
        return  # not ours
    options = [w.split("=")[0] for w in words[1:] if re.match(r"--?[A-Za-z]", w)]
    text = help_of(tuple(words), capsys, monkeypatch)
    for option in options:
        if option != "-m":
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{document}: {option}"


def test_every_option_of_the_readme_is_in_help_and_the_other_way_round(capsys, monkeypatch):
    text = help_of(("-m", "compressai.utils.eval_model", "pretrained"), capsys, monkeypatch)
    told = set(re.findall(r"^\| `(--[\w-]+)", README, re.M))
    ours = set(re.findall(r"^  (--(?:refine[\w-]*|metrics)) ", text, re.M))
    assert told == ours
    text += help_of(("eval/compare.py",), capsys, monkeypatch)
    for option in re.findall(r"`(--[\w-]+)", README):
        assert option in text, option


def test_the_tables_list_every_method_and_preset():
    section = README.split("\n## Methods and presets\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", section, re.M))
    assert set(rows) == {*METHODS, *(name for name in PRESETS if name not in METHODS)}
    shared = re.search(r"^\| the methods' names \| (\d+) \|", README, re.M)
    for name, preset in PRESETS.items():
        assert int(shared[1] if name in METHODS else rows[name]) == preset.steps, name


def test_the_map_and_what_is_named_exist():
    rows = re.findall(r"^\| `([^`]+)` \|", README.split("\n## Map\n")[1].split("\n## ")[0], re.M)
    assert len(rows) > 10
    named = re.findall(r"`((?:compressai_sga|zoo|eval|tests|\.ci)/[\w./-]+)`", README)
    assert [path for path in rows + named if not (ROOT / path).exists()] == []
    folders = {f"{p.name}/" for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    files = {p.name for p in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {f"compressai_sga/{name}" for name in folders | files} <= set(rows)


def links(document: str) -> list[tuple[Path, str]]:
    """(file, anchor) of the links of a document that stay in the repository, pictures included."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"\[[^]\n]*\]\(([^)\s]+)\)", text)
    parts = [link.partition("#") for link in found if "://" not in link]
    folder = (ROOT / document).parent
    return [((folder / path).resolve() if path else ROOT / document, anchor) for path, _, anchor in parts]


def anchors(path: Path) -> set[str]:
    """Of the headings of a document, as pages that show Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for path, anchor in links(document):
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), f"{path.name}#{anchor}"


def test_every_figure_is_shown():
    shown = {path for document in ("README.md", *EVALUATION) for path, _ in links(document)}
    assert set((ROOT / "eval" / "figures").glob("*.png")) <= shown
    pictures = [path for path, _ in links("README.md") if path.suffix == ".png"]
    assert 4 <= len(pictures) <= 6


def test_results_have_a_command_each():
    text = (ROOT / "eval" / "RESULTS.md").read_text(encoding="utf-8")
    sections = text.split("\n## ")[1:]
    assert len(sections) > 10
    for section in sections:
        assert "<!-- results:" in section
        assert "```\npython eval/" in section.split("<!-- results:")[0]


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = 'pip install ".[test]"', "python -m pytest"
    assert f"{install} && {test}\n" in README
    assert install.replace("install", "install --quiet") in script and f"\n{test}" in script


def test_the_changelog_knows_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{compressai_sga.__version__}]" in changelog
