# SPDX-License-Identifier: Apache-2.0
"""Claims of lazy.py: names are known without an import, and the objects are the real ones."""

from __future__ import annotations

import sys

import pytest

from compressai_sga import coding, files, lazy, metrics, refine
from compressai_sga.models import c3


def test_a_table_knows_its_keys_and_imports_its_values(monkeypatch):
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    table = lazy.Table("json", {"tool": "tool:main", "absent": "nowhere:x"})
    assert "tool" in table and list(table) == ["tool", "absent"] and "json.tool" not in sys.modules
    assert table["tool"] is sys.modules["json.tool"].main
    with pytest.raises(KeyError):
        table["other"]
    table["tool"] = 3
    assert table["tool"] == 3
    del table["tool"]
    assert list(table) == ["absent"]


def test_packages_have_all_their_public_names():
    for package in (coding, files, metrics, sys.modules[refine.__module__.rpartition(".")[0]], c3):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
            package.nosuch  # noqa: B018
