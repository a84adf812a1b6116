# SPDX-License-Identifier: Apache-2.0
"""Claims of files/gauge.py: the share of the work that is shown for a large image rises to the end, and a
small image shows nothing."""

from __future__ import annotations

import pytest

from compressai_sga import progress, zoo
from compressai_sga.files import gauge
from compressai_sga.files.codec import compress_picture, decompress_picture
from compressai_sga.files.images import Picture, read_picture

PICTURE = Picture(read_picture(zoo.sample_images()[0]).pixels[:192, :256].copy())


@pytest.mark.parametrize("model", ["mbt2018-mean-small", "bmshj2018-factorized-small"])
def test_a_large_image_shows_its_share(model, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SEC", 0.0)
    data, _ = compress_picture(PICTURE, model=model)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(gauge, "SMALLEST", 192 * 256)
    assert compress_picture(PICTURE, model=model)[0] == data
    decompress_picture(data)
    shown: dict[str, list[int]] = {}
    passes = 0
    for line in capsys.readouterr().err.splitlines():
        title, share = line.rsplit(": ", 1)
        shares = shown.setdefault(title, [])
        passes += not shares or int(share[:-1]) < shares[-1]
        shares.append(int(share[:-1]))
    assert list(shown) == ["coding 256x192 pixels", "decoding 256x192 pixels"] and passes == 3
    for shares in shown.values():
        assert len(set(shares)) >= 4 and 95 <= shares[-1] <= 100
