# SPDX-License-Identifier: Apache-2.0
"""Docstrings of the package as mkdocstrings shows them.

What a module exports is what its `__all__` names, submodules too. The head of a module has lines that begin
with "In:", "Out:" and "Fails", and columns aligned by spaces; in Markdown both would become running text.

In:  mkdocs.yml names this file as an extension of mkdocstrings. Out: changed objects of griffe.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Module

__all__ = ["Layout", "markdown"]

LABEL = re.compile(r"(In:|Out:|Fails:?|Sources?:) +(?=\S)")
HIDDEN = ("__post_init__", "__repr__", "__str__")
COLUMNS = re.compile(r"\S {2,}\S")


class Layout(Extension):
    """Says what is not public, and lays out heads of modules."""

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """Submodules that `__all__` does not name are not public."""
        if mod.exports is not None:
            for name, member in mod.modules.items():
                if name not in mod.exports:
                    member.public = False
        if mod.docstring is not None:
            mod.docstring.value = markdown(mod.docstring.value)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Fields of a dataclass are told among its arguments."""
        fields = any(str(decorator.value).startswith("dataclass") for decorator in cls.decorators)
        for name, member in list(cls.members.items()):
            if name in HIDDEN or (fields and member.is_attribute and not member.docstring):
                del cls.members[name]
        if fields and cls.docstring is not None:
            cls.docstring.value = re.sub(r"^Attributes:$", "Args:", cls.docstring.value, flags=re.M)


def markdown(docstring: str) -> str:
    """The head of a module in Markdown.

    Args:
        docstring: paragraphs; lines that are indented by four stay code.
    """
    done = []
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.split("\n")
        if lines[0].startswith("    "):
            done.append(paragraph)
        elif LABEL.match(lines[0]):
            done.append("\n".join(_item(line) for line in lines))
        elif sum(bool(COLUMNS.search(line)) for line in lines) * 2 >= len(lines) > 1:
            done.append("\n".join(f"    {line}" for line in lines))
        else:
            done.append(paragraph)
    return "\n\n".join(done)


def _item(line: str) -> str:
    """An item of a list where a label begins, else more of the item before."""
    label = LABEL.match(line)
    return f"- **{label[1]}** {line[label.end() :]}" if label else f"    {line.strip()}"
