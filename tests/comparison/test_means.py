# SPDX-License-Identifier: Apache-2.0
"""comparison/means.py: means are of the same images for all entries; BD-rates are those of known curves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compressai_sga.comparison.means import MeanCurve, Means, bd_table, means, points_table
from compressai_sga.errors import SgaError


def cells(values: dict[tuple[str, str, str], float]) -> dict[str, Any]:
    """A results file's, with these bits a pixel by entry, point and image, and a PSNR of 40 times that."""
    return {
        " ".join(key): {
            "of": dict(zip(("entry", "point", "image"), key)),
            "values": {"bpp": bpp, "psnr-rgb": 40 * bpp, "ms-ssim-rgb": 0.9},
        }
        for key, bpp in values.items()
    }


ALL = {(entry, point, image): 0.1 * int(point) + 0.01 * int(image)
       for entry in ("a", "b") for point in "12" for image in "012"}  # fmt: skip


def test_means():
    once = {"a 2: set": {"of": {"entry": "a", "point": "2"}, "values": {"swd": 0.5}}}
    found = means(cells(ALL) | once, {"theirs": {"source": "a paper", "results": {"bpp": [1.0]}}})
    assert found.images == 3 and not found.left_out
    assert [(c.label, c.points, c.published) for c in found.curves] == [
        ("a", ("1", "2"), False), ("b", ("1", "2"), False), ("theirs", (), True)
    ]  # fmt: skip
    assert found.curves[0].values["bpp"] == pytest.approx([0.11, 0.21])
    assert "swd" not in found.curves[0].values  # of one point only
    head, rows = points_table(found)
    assert head == ["entry", "point", "bpp", "PSNR, dB", "MS-SSIM"]
    assert rows[1] == ["a", "2", "0.2100", "8.40", "0.9000"] and len(rows) == 4


def test_an_image_that_fails_with_one_entry_is_left_out_of_all():
    missing = ("b", "1", "2")
    found = means(cells({key: bpp for key, bpp in ALL.items() if key != missing}), wanted=list(ALL))
    assert found.images == 2 and found.left_out == {"2": "failed with b"}
    for curve in found.curves:
        assert curve.values["bpp"] == pytest.approx([0.105, 0.205])


def test_a_point_that_mostly_fails_is_left_out_first():
    there = {key: bpp for key, bpp in ALL.items() if key[:2] != ("b", "1") or key[2] == "0"}
    found = means(cells(there), wanted=list(ALL))
    assert found.images == 3 and found.left_out == {"b, 1": "failed on 2 of 3 images"}
    assert [curve.points for curve in found.curves] == [("1", "2"), ("2",)]
    assert means({}, wanted=list(ALL)).curves == []


def test_values_that_some_lack():
    some = cells(ALL)
    del some["a 1 0"]["values"]["ms-ssim-rgb"]
    some["b 1 0"]["values"]["psnr-rgb"] = math.inf
    found = means(some)
    assert "MS-SSIM" in found.left_out
    assert "ms-ssim-rgb" not in found.curves[0].values and "ms-ssim-rgb" in found.curves[1].values
    assert found.curves[1].values["psnr-rgb"][0] == math.inf


def test_bd_rates_of_known_curves():
    values = {"bpp": [0.2, 0.4, 0.8, 1.6], "psnr-rgb": [28.0, 31.0, 34.0, 37.0]}
    half = {"bpp": [b / 2 for b in values["bpp"]], "psnr-rgb": values["psnr-rgb"]}
    apart = {"bpp": values["bpp"], "psnr-rgb": [48.0, 51.0, 54.0, 57.0]}
    given = (("a", values), ("b", half), ("c", apart))
    found = Means([MeanCurve(name, ("1", "2", "3", "4"), v) for name, v in given], 1)
    head, rows, notes = bd_table(found, "a")
    assert head == ["against a", "BD-rate by PSNR"]
    assert rows[0] == ["b", "-50.0 % (28 to 37 dB, 100 % of both)"] and rows[1] == ["c", "-"]
    assert len(notes) == 1 and "no dB in common" in notes[0]
    with pytest.raises(SgaError, match="no curve 'd'; there are a, b, c"):
        bd_table(found, "d")
