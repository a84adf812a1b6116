# SPDX-License-Identifier: Apache-2.0
"""comparison/entries.py: what a line means, and that a wrong one says what is wrong and what there is."""

from __future__ import annotations

import pytest
import torch
from compressai.models import FactorizedPrior
from PIL import Image

from compressai_sga import zoo
from compressai_sga.comparison import classical
from compressai_sga.comparison.entries import parse, slug
from compressai_sga.errors import SgaError


@pytest.mark.parametrize(
    ("line", "label", "points"),
    [
        ("jpeg@5,50", "jpeg", ("5", "50")),
        ("jpeg2000", "jpeg2000", ("200", "130", "90", "60", "40", "24", "16", "12")),
        ("mbt2018-mean-small@1-3,6", "mbt2018-mean-small", ("1", "2", "3", "6")),
        ("bmshj2018-factorized-small", "bmshj2018-factorized-small", ("1", "3", "5")),
        ("cheng2020-anchor", "cheng2020-anchor", ("1", "2", "3", "4", "5", "6")),
        ("c3-fast@4:steps=7:seed=1", "c3-fast:steps=7:seed=1", ("4",)),
        ("c3:lmbda=0.001", "c3:lmbda=0.001", ("0.001",)),
        ("diffc-f-small:bpp=0.3", "diffc-f-small:bpp=0.3", ("0.3",)),
        ("mbt2018-mean-vbr", "mbt2018-mean-vbr", ("0.5", "1", "2", "4", "8")),
    ],
)
def test_lines(line, label, points):
    entry = parse(line)
    assert (entry.label, entry.points) == (label, points)
    assert parse(label).options == entry.options  # a label is a line, which other processes read


def test_options_are_those_of_eval_model():
    entry = parse("mbt2018-mean-small@2:refine=ssl:refine-steps=7:refine-lmbda=0.01")
    assert entry.request.refine == {"method": "ssl", "steps": 7, "lmbda": 0.01}
    assert parse("mbt2018-mean-small:refine=best").request.refine == {"method": "best"}
    assert parse("hfd-small@1:steps=3:realism=0.5").request.model == {"steps": 3, "realism": 0.5}
    assert parse("jpeg").slug == "jpeg" and "/" not in entry.slug and ":" not in entry.slug


def test_checkpoints_are_points(tmp_path):
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for file in files:
        torch.save(FactorizedPrior(8, 12).state_dict(), file)
    entry = parse(f"bmshj2018-factorized:checkpoint={files[0]},{files[1]}")
    assert entry.points == tuple(map(str, files))


def test_long_labels_make_short_names_of_files():
    names = {slug("x" * 300 + end) for end in ("a", "b")}
    assert len(names) == 2 and all(len(name) == 80 for name in names)


def test_every_label_and_point_has_its_own_name_of_a_file():
    texts = ["a/b", "a_b", "a:b", "a::b", "a b", "/a/b", "a:b:", "a_b" * 30, slug("a_b")]
    names = [slug(text) for text in texts]
    assert len(set(names)) == len(texts) and all("/" not in name for name in names)
    assert slug("mbt2018-mean-small:refine=fast") == "mbt2018-mean-small_refine=fast"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("jpg", "no model or codec is called 'jpg'; there are jpeg, "),
        ("jpeg@", "no points after its @"),
        ("jpeg@5,x", "'x' is no point"),
        ("jpeg@5,5", "a point twice"),
        ("jpeg:quality=3", "unrecognized arguments: --quality"),
        ("vtm@30", "--build-dir"),
        ("mbt2018-mean-small@9", "the qualities of mbt2018-mean-small are 1, 2, 3, 4, 5, 6"),
        ("mbt2018-mean-small:refine=nothing", "choose from"),
        ("mbt2018-mean-small:refine-steps=-1", "whole number of at least 0"),
        ("mbt2018-mean-small:stepz=4", "unrecognized arguments: --stepz"),
        ("mbt2018-mean-small:steps=4", "has no such option"),
        ("mbt2018-mean-small:metric=ssim", "it must be mse or ms-ssim"),
        ("mbt2018-mean-small:metrics=lpips", "no options of an entry"),
        ("mbt2018-mean-small:coder=huffman", "coder is 'huffman'; it must be one of ans"),
        ("c3-fast:refine=ssl", "leaves nothing to refine"),
        ("c3@3:lmbda=0.001", "leave out the @"),
        ("nothing:checkpoint=x.pth", "no architecture is called 'nothing'"),
        ("mbt2018-mean:checkpoint=x.pth", "the checkpoint x.pth does not exist"),
    ],
)
def test_wrong_lines(line, says):
    with pytest.raises(SgaError) as error:
        parse(line)
    assert says in str(error.value) and line.split("@")[0].split(":")[0] in str(error.value)


def test_a_format_that_pillow_lacks_is_named(monkeypatch):
    monkeypatch.setattr(Image, "SAVE", {"JPEG": Image.SAVE.get("JPEG")})
    assert not classical.available("avif")
    with pytest.raises(SgaError, match="cannot write avif; install a Pillow"):
        parse("avif")


def test_every_zoo_model_is_an_entry():
    for name in {record.name for record in zoo.list_models()}:
        assert parse(name).points == tuple(str(r.quality) for r in zoo.list_models() if r.name == name)
