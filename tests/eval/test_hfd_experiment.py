# SPDX-License-Identifier: Apache-2.0
"""experiments/hfd/measure.py measures a denoiser on images, resumes, and draws its figures; a tiny random
network serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.utils import save_image

from compressai_sga import zoo
from compressai_sga.diffusion.unet import UNetConfig
from compressai_sga.errors import SgaError
from compressai_sga.models.hfd import HFD, ResidualDenoiser
from experiments.hfd import measure
from images import centre_crop

EVAL = Path(__file__).resolve().parents[2] / "eval"
FIRST = "mbt2018-mean-small"
RESULTS = EVAL / "results" / "hfd.json"


@pytest.mark.skipif(
    not RESULTS.is_file(), reason="eval/experiments/hfd/measure.py has not been run on hfd-small"
)
def test_the_committed_results_reach_the_bars():
    """Quality 1: distance at least 25 % below the first stage's, at most 2.5 dB lost, the same bytes."""
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    (sha256,) = {r.sha256 for r in zoo.list_models() if r.name == "hfd-small"}
    assert all(cell["of"]["sha256"] == sha256 for cell in cells.values())
    images = cells["set 1"]["of"]["images"]
    values = [cells[f"image 1 {image}"]["values"] for image in images]
    assert len(images) == 24 and all(v["same_bytes_as_first_stage"] for v in values)
    first, hfd = (sum(cells["set 1"]["values"][label]["swd"]) for label in ("first", "1.0"))
    assert hfd < 0.75 * first
    assert sum(v["psnr_db"]["first"] - v["psnr_db"]["1.0"] for v in values) < 2.5 * len(values)
    assert all(v["psnr_db"]["first"] > v["psnr_db"]["0.5"] > v["psnr_db"]["1.0"] for v in values)


@pytest.fixture
def script(monkeypatch):
    """One sampler, and metrics that need no file, or lack it."""
    monkeypatch.setattr(measure, "METHODS", ("ddim",))
    monkeypatch.setattr(measure, "METRICS", {"lpips": lambda x, x_hat: float((x - x_hat).abs().mean())})
    monkeypatch.setattr(measure, "SET_METRICS", {"fid": lacking})
    return measure


def lacking():
    raise SgaError(f"the metric fid needs the file f.pth, which could not be loaded (from {Path.home()})")


@pytest.fixture
def images(tmp_path):
    """Two images, one whose sides are no multiples of 64."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("kodim01", (64, 80)), ("other", (70, 64))):
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(size[1]))
        save_image(
            nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1), folder / f"{name}.png"
        )
    return folder


@pytest.fixture
def weights(tmp_path):
    config = UNetConfig(in_channels=6, widths=(8, 16), blocks=1, groups=4, labels=2)
    net = ResidualDenoiser(config, [1, 3], [0.03, 0.02], FIRST)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def arguments(tmp_path, images, weights):
    return [
        *("--kodak", str(images), "--weights", str(weights), "--qualities", "3", "--steps", "2"),
        *("--budgets", "1", "2", "--samplers", "1", "--pictures", str(tmp_path / "pictures")),
        *("--out", str(tmp_path / "results" / "hfd.json")),
    ]


def test_measures_once_and_prints(script, arguments, tmp_path, monkeypatch, capsys):
    script.main(arguments)
    printed, err = capsys.readouterr()
    assert "fid is not measured" in err and err.count("fid is not measured") == 1
    assert "| 3 | HFD, realism 0.8 |" in printed and "| ddim | 2 |" in printed
    assert "FID not measured: the metric fid needs the file f.pth.\n" in printed
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2 * 4
    for name in ("hfd.png", "hfd-crops.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000
    for name in ("measure_image", "measure_set", "measure_sampler"):  # a second call must not measure
        monkeypatch.setattr(script, name, pytest.fail)
    script.main(arguments)
    assert capsys.readouterr().out == printed
    script.main([*arguments, "--tables"])
    assert capsys.readouterr().out == printed


def test_values_are_those_of_the_model(script, arguments, images, weights, tmp_path):
    script.main([*arguments, "--precision", "float32"])
    cells = json.loads((tmp_path / "results" / "hfd.json").read_text(encoding="utf-8"))["cells"]
    net = ResidualDenoiser.from_state_dict(torch.load(weights, weights_only=True))
    model = HFD(zoo.load(FIRST, 3), net, quality=3, steps=2, precision="float32")
    x = centre_crop(images / "kodim01.png")
    coded = model.compress(nn.functional.pad(x, (24, 24)))
    values = cells["image 3 kodim01"]["values"]
    size = sum(len(part[0]) for part in coded["strings"])
    assert values["bytes"] == size and values["bpp"] == pytest.approx(8 * size / 64 / 80, rel=1e-5)
    psnr = values["psnr_db"]
    assert psnr["first"] > psnr["0.5"] > psnr["0.8"] > psnr["1.0"]
    with torch.no_grad():
        for label, realism in (("first", 0.0), ("0.5", 0.5), ("1.0", 1.0)):
            x_hat = model.decompress(**coded, realism=realism)["x_hat"][..., 24:-24]
            expected = script.psnr_db(x, script.eight_bits(x_hat))
            assert psnr[label] == pytest.approx(expected, abs=2e-3)
    of_set = cells["set 3"]["values"]
    assert cells["set 3"]["of"]["images"] == ["kodim01", "other"]
    assert len(of_set["first"]["swd"]) == len(of_set["1.0"]["swd_each"]) == 3  # 64, 32 and 16 px
    assert of_set["first"]["swd"] != of_set["first"]["swd_each"] and 0 < of_set["0.5"]["lpips"] < 0.5


def test_a_killed_run_goes_on(script, arguments, monkeypatch, tmp_path):
    whole = script.measure_image
    done = []

    def killed(setup, quality, path):
        if done:
            raise KeyboardInterrupt
        done.append(path.stem)
        return whole(setup, quality, path)

    monkeypatch.setattr(script, "measure_image", killed)
    with pytest.raises(SystemExit):
        script.main(arguments)
    again = []
    monkeypatch.setattr(
        script, "measure_image", lambda s, q, path: again.append(path.stem) or whole(s, q, path)
    )
    script.main(arguments)
    assert (done, again) == (["kodim01"], ["other"])


def test_pictures_that_are_gone_are_made_again(script, arguments, tmp_path):
    script.main(arguments)
    path = tmp_path / "results" / "hfd.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    before = results["cells"].pop("set 3")
    path.write_text(json.dumps(results), encoding="utf-8")
    next((tmp_path / "pictures").rglob("other-q3-0.5.png")).unlink()
    script.main(arguments)
    after = json.loads(path.read_text(encoding="utf-8"))["cells"]["set 3"]
    assert after["values"] == before["values"]


def test_other_bits_are_a_failure(script, arguments, monkeypatch, tmp_path, capsys):
    """All that compresses is named, and the quality has no set."""
    compress = HFD.compress

    def longer(self, x):
        out = compress(self, x)
        return {**out, "strings": [[part[0] + b"\0"] for part in out["strings"]]}

    monkeypatch.setattr(HFD, "compress", longer)
    with pytest.raises(SystemExit, match="failed: image 3 kodim01, image 3 other, sampler ddim 1"):
        script.main(arguments)
    assert "not those of its first stage" in capsys.readouterr().err
    assert not json.loads((tmp_path / "results" / "hfd.json").read_text(encoding="utf-8"))["cells"]


def test_a_folder_without_images_is_named(script, tmp_path):
    with pytest.raises(SystemExit, match="--kodak"):
        script.main(["--kodak", str(tmp_path), "--out", str(tmp_path / "results" / "hfd.json")])
