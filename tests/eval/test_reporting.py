# SPDX-License-Identifier: Apache-2.0
"""Tables, parts of results files, and where figures go."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from compressai_sga.tasks.provenance import digest, drawn_from
from reporting import cells_of, image_grid, markdown, part, read_cells, save_beside


def test_rows_are_cells_or_text():
    rows = [["1", "2"], "3 | 4", ["", "5"], "| 6"]
    lines = ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |", "|  | 5 |", "| | 6 |"]
    assert markdown("a | b", rows).splitlines() == lines
    assert markdown(["a", "b"], rows).splitlines() == lines
    assert markdown("| a", []) == "| | a |\n|---|---|"


def test_parts_are_told_by_the_first_word(tmp_path):
    cell = {"of": {"size": 3}, "values": {"bytes": 7}}
    cells = {"crops a b": cell, "crops": cell, "cropsy a": cell}
    (tmp_path / "x.json").write_text(json.dumps({"machine": {}, "cells": cells}))
    assert read_cells(tmp_path, "x") == cells
    assert cells_of(cells, "crops") == {"a b": cell}
    assert part(cells, "crops") == {"a b": {"bytes": 7, "of": {"size": 3}}}


def test_images_keep_their_pixels_and_figures_their_sources(tmp_path):
    results = tmp_path / "results" / "x.json"
    results.parent.mkdir()
    results.write_text("{}")
    pixels = np.zeros((8, 8, 3), np.uint8)
    fig = image_grid([[("a", pixels), ("b", pixels)]] * 2 + [[("c", pixels)]], size=(1, 2), fontsize=8)
    assert [axes.get_title() for axes in fig.axes] == ["a", "b", "a", "b", "c", ""]
    save_beside(fig, "x-crops", results)
    path = tmp_path / "figures" / "x-crops.png"
    assert drawn_from(path) == digest([results])
    with Image.open(path) as image:
        assert image.size == (200, 600)
