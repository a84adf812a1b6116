# SPDX-License-Identifier: Apache-2.0
"""What mkdocs needs beyond docs/: documents that lie elsewhere in the repository, and links between them.

Links in documents are those of the repository, so that they work where the repository is read. On the site
each document of `ELSEWHERE`, card of the zoo and figure of eval/ is a page or a file, and links lead there.

In:  mkdocs.yml names this file as a hook. Out: further pages; Markdown as mkdocs reads it, with blank lines
     in front of lists and tables and without the marker lines of results.
Fails, under `mkdocs build --strict`, with a warning where a link leads out of the repository or to no file.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

__all__ = ["ELSEWHERE", "on_config", "on_files", "on_page_markdown", "site_paths"]

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "eval/README.md": "claims.md",
    "eval/RESULTS.md": "results.md",
    "eval/gpu_runs.md": "gpu-runs.md",
    "zoo/README.md": "zoo-files.md",
    "zoo/samples/SOURCE.md": "sample-images.md",
}
LINK = re.compile(r"\[(?P<text>[^]\n]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
CODE = re.compile(r"`[^`\n]+`")
MARKER = re.compile(r"^<!-- .* -->$", re.M)
LIST_OR_TABLE = re.compile(r"[*-] |\d+\. |\|")
log = logging.getLogger("mkdocs.hooks.pages")


def site_paths(root: Path = ROOT) -> dict[str, str]:
    """Path on the site of each file outside of docs/ that is there, by its path in the repository."""
    paths = dict(ELSEWHERE)
    for pattern, folder in (("zoo/cards/*.md", "cards"), ("eval/figures/*.png", "figures")):
        for path in sorted(root.glob(pattern)):
            paths[path.relative_to(root).as_posix()] = f"{folder}/{path.name}"
    return paths


def on_config(config: Any) -> Any:
    """Adds the zoo's cards to the section of the models."""
    cards = [path for path in site_paths().values() if path.startswith("cards/")]
    section = next(section["Models"] for section in config.nav if "Models" in section)
    if not any("Cards" in entry for entry in section):  # `mkdocs serve` may call twice
        section.append({"Cards": cards})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the files of `site_paths`."""
    for source, path in site_paths().items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A document as mkdocs reads it."""
    paths = site_paths()
    sources = {path: source for source, path in paths.items()}
    path = page.file.src_uri
    source = sources.get(path, f"docs/{path}")
    return _outside_of_code(markdown, lambda text: _spaced(_linked(text, source, path, paths)))


def _linked(text: str, source: str, path: str, paths: dict[str, str]) -> str:
    """Links of the document `source`, which is `path` on the site, as links of the site."""

    def replace(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match["target"].partition("#")
        if not target or "://" in target:
            return match[0]
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = named.removeprefix("docs/") if named.startswith("docs/") else paths.get(named)
        if there is None:
            if not (ROOT / named).is_file():
                log.warning("%s links to %s, which does not exist; mend the link", source, target)
            return match["text"]  # a file of the repository that is no page
        return f"[{match['text']}]({posixpath.relpath(there, posixpath.dirname(path))}{hash_sign}{anchor})"

    return LINK.sub(replace, text)


def _spaced(text: str) -> str:
    """Blank lines in front of lists and tables, which Markdown elsewhere does not need; no marker lines."""
    lines: list[str] = []
    for line in MARKER.sub("", text).split("\n"):
        before = lines[-1] if lines else ""
        starts = LIST_OR_TABLE.match(line) and before and not before.startswith(" ")
        if starts and not LIST_OR_TABLE.match(before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Changes what lies between fenced blocks."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])
