# SPDX-License-Identifier: Apache-2.0
"""Claims of catalogue.py and of what the manifest says that decoding costs."""

from __future__ import annotations

import json

import pytest
from compressai.utils.eval_model.__main__ import read_image

from compressai_sga import catalogue, zoo
from compressai_sga.models import c3
from compressai_sga.models.macs import decoder_macs_px


def test_every_model_is_listed_with_its_qualities_cost_and_purpose(capsys):
    assert catalogue.models(["--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {record.name for record in zoo.list_models()} | {*c3.ARCHITECTURES}
    assert rows["mbt2018-mean-small"]["qualities"] == [1, 2, 3, 4, 5, 6]
    for row in rows.values():
        assert row["purpose"] and row["mb"] > 0
        assert all(isinstance(kmacs, float) and kmacs > 0 for kmacs in row["decoder_kmacs_px"])
    assert catalogue.models([]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[1:]] == list(rows)
    assert "1-6" in next(line for line in told if line.startswith("mbt2018-mean-small"))


@pytest.mark.parametrize(("name", "quality"), [("mbt2018-mean-small", 1), ("rda-l1-small", 3)])
def test_the_manifests_multiplications_are_those_that_are_made(name, quality):
    record, x = zoo.find(name, quality), read_image(zoo.sample_images()[0])[None, :, :64, :64]
    assert decoder_macs_px(zoo.load(name, quality), x) / 1000 == pytest.approx(
        record.decoder_kmacs_px, abs=1e-3
    )


def test_a_decoder_that_is_no_pytorch_says_what_it_costs():
    net = c3.C3Fast()
    assert decoder_macs_px(net, None) == net.macs.total
