# SPDX-License-Identifier: Apache-2.0
"""tasks/records.py: cells survive a cut, say where they were measured, and have one writer at a time."""

from __future__ import annotations

import json

import pytest

from compressai_sga.errors import SgaError
from compressai_sga.tasks.records import Record, machine
from compressai_sga.tasks.tasks import run
from tests.tasks.tasks_runs import calls, expected, read, squares


def test_a_cut_off_line_is_no_cell(tmp_path):
    path = tmp_path / "results.json"
    record = Record(path)
    record.keep("a", {"x": (1, 2)}, 1.0, {"v": 1 / 3})
    with path.with_suffix(".jsonl").open("a") as file:
        file.write('{"name": "b", "cell": {"of": {}, "val')
    record = Record(path)
    assert record.known("a", {"x": [1, 2]}) == {"v": 0.333333} and "b" not in record.cells
    record.keep("b", {}, 1.0, {})
    assert set(Record(path).cells) == {"a", "b"}
    record.write()
    assert set(Record(path).cells) == {"a", "b"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_cell_says_where_it_was_measured(tmp_path):
    record = Record(tmp_path / "results.json")
    record.keep("here", {}, 1.0, {}, machine())
    record.keep("there", {}, 1.0, {}, {"cpu": "another"})
    assert "machine" not in record.cells["here"]
    assert record.cells["there"]["machine"] == {"cpu": "another"}
    assert record.machine == machine()


def test_cells_of_another_machine_keep_it(tmp_path):
    """Also in the journal, which a kill leaves; and only the cells that were not measured again."""
    path = tmp_path / "results.json"
    cell = {"of": {}, "seconds": 1.0, "values": {}}
    old = {"machine": {"cpu": "old"}, "cells": {"a": cell, "b": cell}}
    path.write_text(json.dumps(old), encoding="utf-8")
    record = Record(path)
    record.keep("b", {"x": 1}, 1.0, {})
    for after in (record, Record(path)):
        assert after.machine == machine()
        assert after.cells["a"]["machine"] == {"cpu": "old"} and "machine" not in after.cells["b"]
    record.write()
    assert Record(path).cells == record.cells


def test_two_runs_on_one_file(parts, tmp_path):
    """The second is refused; after the first has ended it finds what that has done."""
    path = tmp_path / "results.json"
    one, two = Record(path), Record(path)
    with one.alone():
        one.keep("square 0", {"x": 0}, 1.0, {"square": 0, "third": 0})
        for act in (
            lambda: run(two, squares(parts, tmp_path, 1), title="t"),
            lambda: two.cell("b", {}, dict),
            two.write,
        ):
            with pytest.raises(SgaError, match="another run is writing .*results.json; wait"):
                act()
        one.write()
    run(two, squares(parts, tmp_path, 2), title="t")
    assert [name for name, _ in calls(tmp_path)] == ["1"]
    assert read(tmp_path) == expected(2)
