# SPDX-License-Identifier: Apache-2.0
"""A torn line costs itself only, and an entry is in the file before it is closed."""

from __future__ import annotations

from compressai_sga.json_lines import JsonLines


def test_torn_and_foreign_lines_cost_themselves_only(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path)
    assert list(lines.read()) == [] and not path.exists()
    lines.append({"n": 0})
    lines.append({"n": 1})
    path.write_bytes(path.read_bytes()[:-3])  # the writer was killed
    again = JsonLines(path)
    assert list(again.read()) == [{"n": 0}]
    again.append({"n": 2})
    again.append({"n": "three\nlines \u2028"})
    assert path.read_bytes().count(b"\n") == 4
    path.write_bytes(path.read_bytes() + b"\n[]\n\xff\n1")
    again.close()
    again.append({"n": 4})
    assert [entry["n"] for entry in JsonLines(path).read()] == [0, 2, "three\nlines \u2028", 4]
    again.remove()
    assert not path.exists()
