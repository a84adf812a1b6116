# SPDX-License-Identifier: Apache-2.0
"""What README, the pages of docs/ and the other documents say holds: their Python runs, their commands parse,
their paths and links exist, their tables are complete.

Python blocks run as they stand, one namespace a document, with any `steps=N` lowered to 2; so do the
indented examples in docstrings of the package that name `compressai_sga.`. A command is asked for its --help
only once.
"""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import setuptools
import torch
from compressai.models import MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import read_image
from torchvision.transforms.functional import to_pil_image

import compressai_sga
import compressai_sga.__main__
from compressai_sga import zoo
from compressai_sga.coding import CODERS
from compressai_sga.metrics import METRICS, SET_METRICS
from compressai_sga.refine import METHODS, PRESETS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "compressai_sga"
EVALUATION = ("eval/RESULTS.md", "eval/README.md", "eval/gpu_runs.md")
PAGES = tuple(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))
DOCUMENTS = ("README.md", *PAGES, "CONTRIBUTING.md", "zoo/README.md", *EVALUATION)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """Fenced blocks of a document in one language ("" for plain ones)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", read(document), re.M | re.S)
    return [text for found, text in fenced if found == language]


def commands(document: str) -> Iterator[list[str]]:
    """Every `python ...` command of a document, in blocks and between backticks, as words."""
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    for line in lines + re.findall(r"`([^`\n]+)`", read(document)):
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["python"] and "..." not in words:
                yield words[1:]


FOUND = {tuple(words): d for d in DOCUMENTS[::-1] for words in commands(d)}
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
def names(tmp_path_factory) -> dict[str, Any]:
    """What an example may take for granted."""
    image = read_image(zoo.sample_images()[0])[None, :, :64, :64]
    folder = tmp_path_factory.mktemp("folder")
    to_pil_image(image[0]).save(folder / "a.png")
    record = next(r for r in zoo.list_models() if r.name == zoo.DEFAULT_MODEL)
    return {
        "compressai_sga": compressai_sga,
        "safetensors": safetensors,
        "MeanScaleHyperprior": MeanScaleHyperprior,
        "FILE": zoo._folder() / record.file,
        "FOLDER": folder,
        "OUT": folder / "out",
        "model": zoo.load(),
        "x": image,
        "torch": torch,
    }


def run(code: str, names: dict[str, Any], where: str) -> None:
    exec(compile(re.sub(r"\bsteps=\d+", "steps=2", code), where, "exec"), names)


def test_there_are_examples_and_their_fits_are_short():
    code = {document: "\n".join(blocks(document, "python")) for document in DOCUMENTS}
    assert all(word in code["README.md"] for word in ("refine(", "refined(", "decompress("))
    takers = (
        "refine(",
        "refined(",
        "refine_folder(",
        "refine_frames(model",
        "refined_frames(model",
        'image_models["c3',
        'load("hfd-',
        'load("diffc-',
    )
    for document, text in code.items():
        assert text.count("steps=") == sum(text.count(word) for word in takers), document


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")])
def test_python_blocks_run(document, names, capsys):
    own = dict(names)
    for number, code in enumerate(blocks(document, "python")):
        run(code, own, f"{document}, block {number + 1}")
    printed = capsys.readouterr().out
    if document in ("README.md", "docs/refinement.md", "docs/channels.md"):
        assert "True" in printed and "False" not in printed
    if document == "README.md":
        assert own["result"].after.loss <= own["result"].before.loss
        assert own["out"].keys() == {"strings", "shape"}
    if document == "docs/zoo.md":
        assert type(own["net"]) is MeanScaleHyperprior


@pytest.mark.parametrize("where", EXAMPLES)
def test_docstring_examples_run(where, names):
    run(EXAMPLES[where].replace('method="ssl"', 'method="ssl", steps=2'), dict(names), where)


def test_the_package_has_docstring_examples():
    assert {"compressai_sga/__init__.py", "compressai_sga/zoo.py"} <= set(EXAMPLES)


HELPS: dict[tuple[str, ...], str] = {}
Help = Callable[[tuple[str, ...]], str]


@pytest.fixture
def help_of(capsys, monkeypatch) -> Help:
    """What the command that some words start says to --help; fails where there is no such command."""

    def look_up(words: tuple[str, ...]) -> str:
        module = words[1] if words[0] == "-m" else ""
        ours = {command.name for command in compressai_sga.__main__.COMMANDS} - {"eval_model"}
        if module == "compressai_sga" and ours.intersection(words[2:3]):
            key = words[:3]
        elif module in ("compressai_sga", "compressai.utils.eval_model", "compressai.utils.video.eval_model"):
            command = "compressai.utils.eval_model" if module == "compressai_sga" else module
            key = (command, *[w for w in words if w in ("pretrained", "checkpoint")][:1])
        else:
            named = words[0] in ("eval/run.py", "zoo/train/visit.py") and "NAME" not in words
            key = words[:2] if module or named else words[:1]
        if key not in HELPS:
            HELPS[key] = asked(key)
        return HELPS[key]

    def asked(key: tuple[str, ...]) -> str:
        before = set(sys.modules)
        with pytest.raises(SystemExit) as stop:
            if key[0].startswith("compressai."):
                compressai_sga.hooks.enable()
                importlib.import_module(f"{key[0]}.__main__").main([*key[1:], "--help"])
            elif len(key) == 3:
                compressai_sga.__main__.main([key[2], "--help"])
            elif key[0] == "-m":
                monkeypatch.setattr(sys, "argv", [key[1], "--help"])
                runpy.run_module(key[1], run_name="__main__", alter_sys=True)
            else:
                script = ROOT / key[0]
                monkeypatch.setattr(sys, "argv", [str(script), *key[1:], "--help"])
                monkeypatch.syspath_prepend(str(script.parent))
                runpy.run_path(str(script), run_name="__main__")
        assert stop.value.code == 0
        for name in set(sys.modules) - before:  # a script's neighbours have plain names
            if "." not in name and (ROOT / key[0]).parent.joinpath(f"{name}.py").is_file():
                del sys.modules[name]
        return capsys.readouterr().out

    return look_up


def is_ours(words: tuple[str, ...]) -> bool:
    return words[0] != "setup.py" and words[:2] not in (("-m", "venv"), ("-m", "pytest"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if is_ours(c[1:])], ids=" ".join)
def test_commands_take_their_options(command, help_of):
    document, *words = command
    options = [w.split("=")[0] for w in words[1:] if re.match(r"--?[A-Za-z]", w)]
    text = help_of(tuple(words))
    for option in options:
        if option != "-m":
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{document}: {option}"


def test_every_option_of_eval_model_is_told_and_the_other_way_round(help_of):
    text = help_of(("-m", "compressai.utils.eval_model", "pretrained"))
    told = set(re.findall(r"^\| `(--[\w-]+)", read("docs/eval-model.md"), re.M))
    assert told == set(re.findall(r"^  (--(?:refine[\w-]*|metrics)) ", text, re.M))
    others = set(re.findall(r"^  (--[\w-]+)", text.split("\ncompressai-sga:\n")[1], re.M)) - told
    models = "".join(read(f"docs/{page}.md") for page in ("c3", "hfd", "diffc", "zoo"))
    assert [option for option in others if option not in models] == []


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_options_in_the_text_are_those_of_commands(document, help_of):
    """Of whichever command; `test_commands_take_their_options` knows which."""
    for option in re.findall(r"`(--[\w-]+)", read(document)):
        assert any(option in help_of(c[1:]) for c in COMMANDS if is_ours(c[1:])), option


def first_columns(document: str, heading: str) -> dict[str, str]:
    """Second column by first, which is one code span, of the tables below a heading."""
    section = f"\n{read(document)}".split(f"\n{heading}\n")[1].split("\n#")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", section, re.M))


def test_the_tables_list_every_method_and_preset():
    page = "docs/refinement.md"
    assert set(first_columns(page, "## Methods")) == set(METHODS)
    rows = first_columns(page, "## Presets")
    assert set(rows) == {name for name in PRESETS if name not in METHODS}
    shared = re.search(r"^\| the methods' names \| (\d+) \|", read(page), re.M)
    for name, preset in PRESETS.items():
        assert int(shared[1] if name in METHODS else rows[name]) == preset.steps, name


def test_the_tables_list_every_coder_and_metric():
    assert set(first_columns("docs/entropy-coders.md", "# Entropy coders")) == set(CODERS)
    rows = re.findall(r"^\| (`[^|]*`) \|", read("docs/metrics.md"), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {*METRICS, *SET_METRICS}


def test_the_map_and_what_is_named_exist():
    rows = set(first_columns("CONTRIBUTING.md", "## Map"))
    assert len(rows) > 10
    text = "".join(read(document) for document in ("README.md", *PAGES, "CONTRIBUTING.md"))
    named = re.findall(r"`((?:compressai_sga|zoo|eval|docs|tests|\.ci)/[\w./-]+)`", text)
    assert [path for path in (*rows, *named) if not (ROOT / path).exists()] == []
    folders = {f"{p.name}/" for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    files = {p.name for p in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {f"compressai_sga/{name}" for name in folders | files} <= rows


def links(document: str) -> list[tuple[Path, str]]:
    """(file, anchor) of the links of a document that stay in the repository, pictures included."""
    found = re.findall(r"\[[^]\n]*\]\(([^)\s]+)\)", read(document))
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
    shown = {path for document in DOCUMENTS for path, _ in links(document)}
    assert set((ROOT / "eval" / "figures").glob("*.png")) <= shown
    pictures = [path for path, _ in links("README.md") if path.suffix == ".png"]
    assert 4 <= len(pictures) <= 6


def test_results_have_a_command_each():
    sections = read("eval/RESULTS.md").split("\n## ")[1:]
    assert len(sections) > 10
    for section in sections:
        assert "<!-- results:" in section
        assert "```\npython eval/" in section.split("<!-- results:")[0]


def test_ci_runs_the_commands_of_the_readme():
    script = read(".ci/run")
    install, test = 'pip install ".[test]"', "python -m pytest"
    assert f"{install} && {test}\n" in read("README.md")
    assert install.replace("install", "install --quiet") in script and f"\n{test}" in script
    assert "\npython -m mkdocs build --strict" in script


def test_the_changelog_knows_the_version():
    assert f"## [{compressai_sga.__version__}]" in read("CHANGELOG.md")


# --- README for a package index, and the pages for mkdocs ------------------------------------------------


def test_the_readme_is_short_and_reads_without_the_repository(monkeypatch):
    assert len(read("README.md").splitlines()) <= 180
    made: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: made.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    text = made["long_description"]
    assert all("://" in target for target in re.findall(r"\]\(([^)\s]+)\)", text))
    assert text.startswith("# compressai-sga\n") and "(Picture in the repository: " in text
    assert "[CompressAI](https://" in text and "| Refinement | methods, presets" in text


def test_every_page_is_reached_and_has_one_title(pages):
    config = read("mkdocs.yml")
    named = re.findall(r"^ *- (?:[^:\n]*: )?(\S+\.md)$", config, re.M)
    generated = set(pages.ELSEWHERE.values())
    assert sorted(named) == sorted({page.removeprefix("docs/") for page in PAGES} | generated)
    for page in PAGES:
        titles = re.findall(r"^# .+$", re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S), re.M)
        api = page.startswith("docs/api/") and read(page).startswith("::: ")
        assert len(titles) == (0 if api else 1), page


@pytest.fixture
def pages() -> Any:
    """The hook of mkdocs."""
    pytest.importorskip("mkdocs", reason="the pages need the extra docs")
    return SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "pages.py")))


def test_links_of_the_repository_become_links_of_the_site(pages, caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="models.md"))
    text = (
        "[r](../eval/RESULTS.md#a), [a](api/models.md), [s](https://a.b).\n* ![f](../eval/figures/c3.png)\n"
    )
    text += "```\n[r](../eval/RESULTS.md)\n```\n[l](../LICENSE)\n"
    wanted = "[r](results.md#a), [a](api/models.md), [s](https://a.b).\n\n* ![f](figures/c3.png)\n"
    wanted += "```\n[r](../eval/RESULTS.md)\n```\nl\n"
    assert pages.on_page_markdown(text, page=page) == wanted and not caplog.records
    page.file.src_uri = "cards/hfd-small.md"  # zoo/cards/hfd-small.md
    text = "[z](../README.md) [e](../../eval/README.md#long-runs) [n](../nothing.md)"
    assert pages.on_page_markdown(text, page=page) == "[z](../zoo-files.md) [e](../claims.md#long-runs) n"
    assert "zoo/cards/hfd-small.md links to ../nothing.md, which does not exist" in caplog.text


def test_documents_from_elsewhere_exist_and_have_a_path_each(pages):
    paths = pages.site_paths()
    assert len(set(paths.values())) == len(paths) > len(pages.ELSEWHERE)
    assert [source for source in paths if not (ROOT / source).is_file()] == []


def test_heads_of_modules_become_markdown():
    pytest.importorskip("griffe", reason="the pages need the extra docs")
    markdown = runpy.run_path(str(ROOT / "docs" / "docstrings.py"))["markdown"]
    head = "Idea.\n\nname   what it is\nother  more\n\n"
    head += "In:  x, a\n     batch. Out: y.\nFails with ValueError.\n\n    code  x"
    assert markdown(head) == (
        "Idea.\n\n    name   what it is\n    other  more\n\n"
        "- **In:** x, a\n    batch. Out: y.\n- **Fails** with ValueError.\n\n    code  x"
    )
