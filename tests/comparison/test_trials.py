# SPDX-License-Identifier: Apache-2.0
"""comparison/trials.py: what is reported is what was coded, and what CompressAI's own evaluation reports."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from compressai.models.vbr import MeanScaleHyperpriorVbr
from compressai.utils.eval_model import __main__ as stock
from PIL import Image
from torch import nn
from torchvision.utils import save_image

from compressai_sga import coding, zoo
from compressai_sga.comparison import classical, trials
from compressai_sga.comparison.entries import parse
from compressai_sga.errors import SgaError
from compressai_sga.models.elic import SpaceChannelContext


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    """180x200, no multiple of 64."""
    coarse = torch.rand(1, 3, 20, 22, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("images") / "a.png"
    x = nn.functional.interpolate(coarse, size=(180, 200), mode="bicubic").clamp(0, 1)
    save_image(x, path)
    return str(path)


@pytest.fixture(scope="module")
def small(image, tmp_path_factory) -> str:
    """A corner of it, 72x66: one block of 128x128 with padding, and too small for MS-SSIM."""
    path = tmp_path_factory.mktemp("small") / "b.png"
    Image.open(image).crop((0, 0, 72, 66)).save(path)
    return str(path)


def psnr_db(a: Path | str, b: Path | str) -> float:
    x, y = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (a, b))
    return 10 * math.log10(255**2 / np.mean((x - y) ** 2))


@pytest.mark.parametrize("line", ["jpeg@40", "webp@40", "avif@40", "jxl@40", "jpeg2000@40"])
def test_classical_codecs(line, image, tmp_path):
    if not classical.available(line.split("@")[0]):
        pytest.skip(f"this Pillow cannot write {line}")
    entry = parse(line)
    values = trials.code(entry.label, "40", image, picture=str(tmp_path / "x_hat.png"))
    assert values["psnr-rgb"] == pytest.approx(psnr_db(image, tmp_path / "x_hat.png"), abs=1e-4)
    assert 20 < values["psnr-rgb"] < 60 and 0.5 < values["ms-ssim-rgb"] < 1
    if line == "jpeg@40":
        file = io.BytesIO()
        Image.open(image).save(file, "JPEG", quality=40)
        assert values["bpp"] == 8 * len(file.getvalue()) / (180 * 200)
    if line == "jpeg2000@40":
        assert values["bpp"] == pytest.approx(24 / 40, rel=0.15)
    assert trials.count_macs(entry.label, "40", image) == {}


def test_a_model_is_what_eval_model_says(image, tmp_path):
    net = zoo.load("mbt2018-mean-small", 2)
    expected = stock.inference(net, stock.read_image(Path(image)))
    values = trials.code("mbt2018-mean-small", "2", image, ("critic",), str(tmp_path / "p" / "x_hat.png"))
    for key in ("bpp", "psnr-rgb", "ms-ssim-rgb"):
        assert values[key] == pytest.approx(expected[key], rel=1e-6), key
    assert values["psnr-rgb"] == pytest.approx(psnr_db(image, tmp_path / "p" / "x_hat.png"), abs=1e-4)
    assert values["critic"] > 0 and {"encoding_time", "decoding_time", "cpu_sec"} <= values.keys()
    assert stock.compute_metrics.__module__.startswith("compressai.")  # put back


@pytest.mark.parametrize(("label", "point"), [("jpeg", "50"), ("bmshj2018-factorized-small", "1")])
def test_what_coding_takes_is_without_the_metrics(label, point, image, monkeypatch):
    inside, looked = [], []

    @contextlib.contextmanager
    def measured():
        inside.append(True)
        yield {"cpu_sec": 1.0}
        inside.clear()

    for module in (trials, classical):
        monkeypatch.setattr(module, "measured", measured)
    for name in ("psnr", "ms_ssim"):
        real = getattr(stock, name)
        monkeypatch.setattr(
            stock, name, lambda *a, real=real, **k: looked.append(bool(inside)) or real(*a, **k)
        )
    assert trials.code(label, point, image)["cpu_sec"] == 1.0
    assert len(looked) == 2 and not any(looked)


def test_identity_is_of_all_that_is_loaded():
    def weights(line: str, point: str) -> list[str]:
        return trials.identity(parse(line), point)["weights"]

    records = {(r.name, r.quality): r.sha256 for r in zoo.list_models()}
    first, network = records["mbt2018-mean-small", 2], records["hfd-small", 2]
    assert weights("hfd-small", "2") == [network, first] != weights("hfd-small", "3")
    assert weights("diffc-f-small:bpp=0.6", "0.6") == [records["diffc-f-small", 1]]
    assert len(weights("c3-fast", "3")) == 1 and "mbt2018-mean-1" in weights("mbt2018-mean", "1")[0]
    assert "pillow-jxl-plugin" in trials.identity(parse("jxl@50"), "50")["versions"]


def test_refinement_and_coder(image, small):
    def loss(values: dict[str, float]) -> float:
        (record,) = (r for r in zoo.list_models() if (r.name, r.quality) == ("mbt2018-mean-small", 3))
        return values["bpp"] + record.lmbda * 255**2 * 10 ** (-values["psnr-rgb"] / 10)

    plain = trials.code("mbt2018-mean-small", "3", small)
    refined = trials.code("mbt2018-mean-small:refine=fast:refine-steps=5", "3", small)
    assert loss(refined) < loss(plain)
    net = zoo.load("mbt2018-mean-small", 3)
    coding.set_coder(net, "constriction-ans")
    expected = stock.inference(net, stock.read_image(Path(image)))["bpp"]
    assert trials.code("mbt2018-mean-small:coder=constriction-ans", "3", image)["bpp"] == expected


def test_checkpoints(image, tmp_path):
    torch.manual_seed(0)
    net, path = FactorizedPrior(8, 12), tmp_path / "mine.pth"
    torch.save(net.state_dict(), path)
    entry = parse(f"bmshj2018-factorized:checkpoint={path}")
    values = trials.code(entry.label, str(path), image)
    net.update()
    assert values["bpp"] == stock.inference(net.eval(), stock.read_image(Path(image)))["bpp"]
    before = trials.identity(entry, str(path))
    torch.save(FactorizedPrior(8, 12).state_dict(), path)  # another weight under the same name
    assert trials.identity(entry, str(path)) != before


def test_variable_rate(image, tmp_path):
    """A smaller quantisation step takes more bits, of the same weights."""
    torch.manual_seed(0)
    path = tmp_path / "vbr.pth"
    torch.save(MeanScaleHyperpriorVbr(8, 12, vr_entbttlnck=True).state_dict(), path)
    entry = parse(f"mbt2018-mean-vbr@0.05,1:checkpoint={path}")
    fine, coarse = (trials.code(entry.label, point, image)["bpp"] for point in entry.points)
    assert fine > coarse > 0


def test_a_small_image_has_no_ms_ssim(small):
    for entry, point in (("jpeg", "50"), ("bmshj2018-factorized-small", "1")):
        values = trials.code(entry, point, small)
        assert "ms-ssim-rgb" not in values and values["psnr-rgb"] > 10


def test_macs(image):
    """Four convolutions of 5x5 and stride 2 with three GDNs (1x1), N = 64 and M = 96, counted by hand."""
    n, m = 64, 96
    layers = [(3, n), (n, n), (n, n), (n, m)]
    convolutions = sum(25 * a * b / 4 ** (i + 1) for i, (a, b) in enumerate(layers))
    gdn = sum(n * n / 4 ** (i + 1) for i in range(3))
    counted = trials.count_macs("bmshj2018-factorized-small", "1", image)
    assert counted["encoder_kmacs_px"] == pytest.approx((convolutions + gdn) / 1000)
    assert counted["decoder_kmacs_px"] == pytest.approx((convolutions + gdn) / 1000)  # mirrored
    refined = trials.count_macs("bmshj2018-factorized-small:refine=ssl:refine-steps=3", "1", image)
    assert refined["decoder_kmacs_px"] == pytest.approx(counted["decoder_kmacs_px"])
    assert refined["encoder_kmacs_px"] > 6 * counted["encoder_kmacs_px"]  # forward and backward each
    assert trials.count_macs("c3-fast", "3", image)["decoder_kmacs_px"] == pytest.approx(1.444, abs=1e-3)


def test_a_checkpoint_of_the_context_model(small, tmp_path):
    """As any other: bytes, refined bytes, and multiplications, which are those that its file states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SpaceChannelContext()
        net.g_a[-1].weight.data.mul_(30)
        net.update(update_quantiles=True)
    path = str(tmp_path / "m.pth")
    torch.save(net.state_dict(), path)
    entry = parse(f"elic2022-gdn:checkpoint={path}:coder=constriction-exact")
    assert entry.points == (path,)
    values = trials.code(entry.label, path, small)
    assert values["bpp"] > 0.05 and {"psnr-rgb", "encoding_time", "cpu_sec"} <= values.keys()
    counted = trials.count_macs(entry.label, path, small)
    assert counted["encoder_kmacs_px"] == pytest.approx(20.1, abs=0.05)
    assert counted["decoder_kmacs_px"] == pytest.approx(19.5, abs=0.05)
    refined = parse(f"elic2022-gdn:checkpoint={path}:refine=ssl:refine-steps=2:refine-lmbda=0.01")
    assert trials.code(refined.label, path, small)["bpp"] > 0.05


def test_sets(image, tmp_path):
    pictures = []
    for quality in ("5", "95"):
        trials.code("jpeg", quality, image, picture=str(tmp_path / f"{quality}.png"))
        pictures.append(trials.whole_set([(image, str(tmp_path / f"{quality}.png"))], ["swd"])["swd"])
    assert pictures[0] > 2 * pictures[1] > 0


def test_failures_are_sentences(image, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise SystemExit(1)  # what the bench does when a program fails

    monkeypatch.setattr(classical.CODECS["jpeg"].codec, "run", stop)
    with pytest.raises(SgaError, match="the program of jpeg failed"):
        trials.code("jpeg", "50", image)
    with pytest.raises(SgaError, match="no published weights"):
        trials.load("mbt2018-mean-uq", "3")
