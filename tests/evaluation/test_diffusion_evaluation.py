# SPDX-License-Identifier: Apache-2.0
"""Claims about HFD and DiffC in stock's evaluation: HFD has its first stage's bits, DiffC's real bits are
near the estimate, and options reach the models that have them, from the zoo and from checkpoints, and no
others."""

from __future__ import annotations

import json

import pytest
import torch

from compressai_sga import zoo
from tests.evaluation.c3_images import save


@pytest.fixture
def folder(tmp_path):
    """One image whose sides are no multiples of 64, and large enough for MS-SSIM."""
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "a.png", 162, 170)
    return folder


def test_hfd_has_the_bits_of_its_first_stage(evaluate, folder):
    source = ["pretrained", folder, "-q", 1]
    first = evaluate(*source, "-a", "mbt2018-mean-small", "--metrics", "swd")
    drawn = evaluate(*source, "-a", "hfd-small", "--steps", 2, "--realism", 0.5, "--metrics", "swd")
    assert drawn["options"] == {"steps": 2, "seed": None, "realism": 0.5}
    assert drawn["results"]["bpp"] == first["results"]["bpp"]
    assert drawn["results"]["psnr-rgb"] != first["results"]["psnr-rgb"]
    untouched = evaluate(*source, "-a", "hfd-small", "--realism", 0, "--metrics", "swd")
    for key in ("bpp", "psnr-rgb", "swd"):
        assert untouched["results"][key] == first["results"][key]


def test_hfd_is_refined_by_its_first_stage(evaluate, folder):
    out = evaluate(
        "pretrained", folder, "-a", "hfd-small", "-q", 1, "--steps", 2, "--refine", "ssl", "--refine-steps", 8
    )
    assert out["refine"]["lmbda"] == 0.0018 and out["options"]["steps"] == 2
    results = out["results"]
    assert results["bpp"] != results["bpp-unrefined"]


def test_options_reach_a_checkpoint(evaluate, folder, tmp_path):
    torch.save(zoo.load("hfd-small", 1).state_dict(), tmp_path / "hfd.pth")
    source = ["checkpoint", folder, "-a", "hfd", "-p", tmp_path / "hfd.pth"]
    out = evaluate(*source, "--steps", 2)
    assert out["options"]["steps"] == 2
    same = evaluate("pretrained", folder, "-a", "hfd-small", "-q", 1, "--steps", 2)
    for key in ("bpp", "psnr-rgb"):
        assert out["results"][key] == same["results"][key]


def test_diffc_is_not_padded_and_reaches_its_rate(evaluate, folder):
    source = ["pretrained", folder, "-q", 1, "--bpp", 0.05, "--steps", 2]
    flow = evaluate(*source, "-a", "diffc-f-small")
    assert flow["options"] == {"steps": 2, "seed": 0, "bpp": 0.05}
    assert flow["results"]["bpp"][0] == pytest.approx(0.05, rel=0.5)
    estimated = evaluate(*source, "-a", "diffc-f-small", "--entropy-estimation")
    assert estimated["results"]["bpp"][0] == pytest.approx(flow["results"]["bpp"][0], rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-a", "hfd-small", "-q", "1", "--bpp", "1"], "--bpp: hfd-small has no such option, diffc-a"),
        (["-a", "diffc-f-small", "--realism", "1"], "--realism: diffc-f-small has no such option, hfd"),
        (["-a", "diffc-f-small", "--refine", "ssl"], "--refine: diffc-f-small sends samples, not latents"),
        (["-a", "diffc-f-small", "-q", "3,4", "--bpp", "1"], "--bpp replaces the quality, and -q 3,4 has"),
        (["-a", "hfd-small", "-q", "1", "--realism", "2"], "'2' is not a number from 0 to 1"),
        (["-a", "hfd-small", "-q", "7", "--steps", "2"], "no quality 7; there are 1, 2, 3, 4"),
        (["-a", "hfd", "-q", "1", "--steps", "2"], "no published weights for hfd of full size (hfd-small in"),
    ],
)
def test_wrong_use_is_one_sentence(refused, folder, arguments, expected):
    out, err = refused("pretrained", folder, *arguments)
    assert out == "" and expected in err and "Traceback" not in err


def test_the_stock_command_line(python, folder):
    """As typed by somebody who installed the package, with options and without."""
    command = ["-m", "compressai.utils.eval_model", "pretrained", folder, "-a", "hfd-small", "-q", "1"]
    done = python(*command, "--steps", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["options"]["steps"] == 1
