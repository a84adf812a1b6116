# SPDX-License-Identifier: Apache-2.0
"""Claims of models/families.py: what a family is stands in one row. A toy model is added as CONTRIBUTING
says, by a class, a row and a record of the zoo, and then runs everywhere."""

from __future__ import annotations

import json
import shutil
from typing import ClassVar

import pytest
import torch
from compressai.models import FactorizedPrior
from compressai.registry import MODELS
from compressai.utils.eval_model import __main__ as stock
from compressai.zoo import image_models
from compressai.zoo.image import model_architectures

from compressai_sga import hooks, zoo, zoo_joint
from compressai_sga.__main__ import main
from compressai_sga.models.families import FAMILIES, STOCK, Family, architecture, family_of
from tests.own_zoo import joint_record, used


class Toy(FactorizedPrior):
    """A stock model with an option: what its images are multiplied by."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("realism",)

    def __init__(self, N: int = 8, M: int = 12, realism: float = 1.0) -> None:
        super().__init__(N, M)
        self.realism = realism
        self.check_options()

    def check_options(self) -> None:
        if not 0 <= self.realism <= 1:
            raise ValueError(f"realism is {self.realism}; it goes from 0 to 1")

    def decompress(self, strings, shape):
        return {"x_hat": self.realism * super().decompress(strings, shape)["x_hat"]}


@pytest.fixture
def toy_zoo(tmp_path, monkeypatch):
    """The row, and a zoo with one model of it."""
    shipped, folder = zoo._folder(), tmp_path / "zoo"
    (folder / "weights").mkdir(parents=True)
    shutil.copytree(shipped / "samples", folder / "samples")
    torch.manual_seed(0)
    tensors = zoo_joint.stored(Toy(), {4: zoo.gain_at(0.013, "mse")})
    facts = {"architecture": "toy", "N": 8, "M": 12, "gaussian_tables_crc32": None}
    record = joint_record(folder, "toy-small", tensors, {4: 0.013}, **facts)
    manifest = json.loads((shipped / "manifest.json").read_text()) | {"weights": [], "denoisers": []}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"joint": [record]}))
    FAMILIES.append(Family("Toys", "for tests", {"toy": Toy}, card="A toy `{name}`"))
    with used(folder, monkeypatch):
        yield folder
        FAMILIES.pop()


def test_the_toy_is_known_to_compressai(toy_zoo):
    for dictionary in (MODELS, model_architectures):
        assert dictionary["toy"] is dictionary["toy-small"] is Toy
    assert type(image_models["toy"]()) is type(image_models["toy-small"](4, pretrained=True)) is Toy
    assert family_of("toy-small").title == "Toys"
    with pytest.raises(ValueError, match="realism is 2.0"):
        image_models["toy-small"](4, pretrained=True, realism=2.0)


def test_the_toy_runs_in_eval_model(toy_zoo, capsys):
    assert hooks.patch(stock)
    images = str(toy_zoo / "samples")
    results = {}
    for realism in ("1", "0.5"):
        stock.main(["pretrained", images, "-a", "toy-small", "-q", "4", "--realism", realism])
        results[realism] = json.loads(capsys.readouterr().out)
    assert results["0.5"]["options"] == {"realism": 0.5}
    assert results["1"]["results"]["psnr-rgb"] != results["0.5"]["results"]["psnr-rgb"]
    assert results["1"]["results"]["bpp"] == results["0.5"]["results"]["bpp"]


def test_the_toy_is_filed(toy_zoo, tmp_path, capsys):
    source, target, back = next((toy_zoo / "samples").glob("*.png")), tmp_path / "a.csga", tmp_path / "a.png"
    assert (
        main(
            ["compress", str(source), str(target), "--model", "toy-small", "--refine", "ste", "--steps", "2"]
        )
        == 0
    )
    assert main(["decompress", str(target), str(back)]) == 0 and back.is_file()
    assert main(["info", str(target)]) == 0 and "toy-small, quality 4" in capsys.readouterr().out


def test_the_toy_is_compared(toy_zoo, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(next((toy_zoo / "samples").glob("*.png")), images)
    out = tmp_path / "out"
    entries = ["jpeg@50", "toy-small"]
    assert main(["compare", "--images", str(images), "--entries", *entries, "--out", str(out)]) == 0
    assert "toy-small" in (out / "table.md").read_text(encoding="utf-8")


def test_every_family_says_what_it_is():
    assert len({family.title for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.purpose and family.classes
        for name, cls in family.classes.items():
            assert family_of(name) is family and architecture(name) is cls
            assert all(path.is_file() for path in family.data())
            assert family.card.format(name=name, stock=family.stock_name(name))
    assert family_of("mbt2018-mean") is STOCK
    with pytest.raises(ValueError, match="no architecture is called 'mbt2019'; there are .*elic2022-gdn"):
        family_of("mbt2019")
    owners = [cls for family in FAMILIES for cls in family.classes.values()]
    assert len(owners) == len(set(owners))
