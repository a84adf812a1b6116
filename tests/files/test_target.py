# SPDX-License-Identifier: Apache-2.0
"""Claims of files/target.py: a wished size or PSNR is met within 2 %, in few attempts, by whatever moves the
rate of the model; or the nearest is taken and named."""

from __future__ import annotations

import math
import warnings

import pytest

from compressai_sga import files, zoo
from compressai_sga.__main__ import main
from compressai_sga.coding.container import unpack
from compressai_sga.files import Picture, codec, compress_picture, decompress_picture, read_picture
from compressai_sga.files.kinds import Coded, Range, Request
from compressai_sga.files.target import MOST, TOLERANCE, Wish, search
from compressai_sga.models.c3.fit.loop import Fit

CROP = Picture(read_picture(zoo.sample_images()[0]).pixels[40:120, 100:228].copy())
PIXELS = 80 * 128
QUALITIES = Range("quality", 3, 1, 6, 1.2, (1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("slope", [0.3, 0.55, 1.0, -0.6])
@pytest.mark.parametrize("factor", [0.05, 0.4, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("bend", [0.0, 0.15])
def test_few_attempts_suffice_though_the_slope_is_another(slope, factor, bend):
    """Sizes that are bent powers of lmbda, with a power 1.5 times the expected one."""

    def size(value):
        t = math.log(value / 0.01)
        return 1.5 * slope * t + math.copysign(bend, slope) * math.tanh(t)

    goal = size(0.01) + math.log(factor)
    tried = search(size, goal, Range("lmbda", 0.01, 1e-9, 1e6, slope))
    assert abs(tried[-1][1] - goal) <= TOLERANCE and len(tried) <= 6 < MOST
    assert all(value == float(f"{value:.4g}") for value, _ in tried)


def test_the_search_ends_at_the_limits_and_on_steps():
    low = search(lambda value: math.log(value), math.log(1e-3), Range("lmbda", 0.1, 0.01, 1.0, 1.0))
    assert low[-1][0] == 0.01 and len(low) == 2
    steps = search(lambda value: math.floor(10 * value) / 10, 0.45, Range("lmbda", 0.1, 0.01, 1.0, 1.0))
    assert len(steps) == MOST  # nothing is within 2 %
    flat = search(lambda value: math.tanh(value), 1.2, Range("lmbda", 1.0, 1e-3, 1e3, 0.3))
    assert len(flat) <= 4 and flat[-1][1] > 0.99  # no more than 1 is to be had


@pytest.mark.parametrize(("goal", "best"), [(0.1, 1), (2.0, 2), (3.4, 3), (4.6, 5), (99.0, 6)])
def test_of_qualities_the_nearest_is_tried(goal, best):
    asked = []
    search(lambda quality: asked.append(quality) or float(quality), goal, QUALITIES)
    assert len(set(asked)) == len(asked) <= 5
    assert min(asked, key=lambda quality: abs(quality - goal)) == best


def test_a_wish_is_one_positive_number():
    for wrong in ({}, {"bpp": 1.0, "bytes": 5}, {"bpp": 0.0}, {"psnr_db": math.inf}, {"bytes": -3}):
        with pytest.raises(ValueError, match="target"):
            Wish(**wrong)


def test_refinement_reaches_rates_between_qualities():
    picture = Picture(CROP.pixels[:64, :64].copy())
    usual = len(compress_picture(picture, refine="ssl", steps=30)[0])
    data, result = compress_picture(picture, refine="ssl", steps=30, target_bpp=0.96 * 8 * usual / 64**2)
    assert abs(math.log(len(data) / (0.96 * usual))) <= TOLERANCE
    assert (
        result.config.steps == 30 and result.lmbda < 0.0067 and result.lmbda == float(f"{result.lmbda:.4g}")
    )
    assert unpack(data).quality == zoo.DEFAULT_QUALITY
    assert decompress_picture(data).pixels.shape == (64, 64, 3)


def test_without_refinement_the_nearest_quality_is_taken_and_named():
    sizes = {quality: len(compress_picture(CROP, quality=quality)[0]) for quality in range(1, 7)}
    wanted = math.sqrt(sizes[4] * sizes[5]) * 0.98
    with pytest.warns(
        UserWarning, match="cannot be had within 2%; the nearest is .* .quality 4.; with refinement"
    ):
        data, _ = compress_picture(CROP, target_bytes=wanted)
    assert (unpack(data).quality, len(data)) == (4, sizes[4])
    data, _ = compress_picture(CROP, target_bytes=sizes[5])
    assert unpack(data).quality == 5


def test_diffc_reaches_the_size_of_a_file_that_it_can_make():
    picture = Picture(CROP.pixels[:64, :64].copy())
    size = len(compress_picture(picture, model="diffc-f-small", bpp=0.05)[0])
    _, found = codec._coded(picture, Request("diffc-f-small"), None, size, None)
    assert found.reached and len(found.attempt.data) == size and len(found.requests) < MOST


@pytest.mark.parametrize("wished", [130, 700, 1000, 2222, 40000])
def test_of_diffcs_steps_the_nearest_is_taken_and_no_more_are_tried_than_that_takes(wished, monkeypatch):
    sizes, asked = [round(40 * 1.25**step) for step in range(25)], []

    def compress(picture, request):
        asked.append(request.bpp)
        wanted = request.bpp * PIXELS / 8
        return Coded(50 + min(sizes, key=lambda size: abs(size - wanted)), None, None)

    monkeypatch.setattr(files.diffc, "compress", compress)
    monkeypatch.setattr(codec, "pack", bytes)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data, _ = compress_picture(CROP, model="diffc-f-small", target_bytes=wished)
    nearest = min(sizes, key=lambda size: abs(math.log((50 + size) / wished)))
    assert len(data) == 50 + nearest and len(asked) <= 4
    for warning in told:
        assert ("; DiffC sends whole steps" in str(warning.message)) == (wished < 50 + sizes[-1])


def test_c3_reaches_a_size_and_a_killed_search_goes_on_without_the_fits_that_are_done(
    tmp_path, monkeypatch, capsys
):
    source, target = tmp_path / "in.png", tmp_path / "out.csga"
    files.write_picture(source, Picture(CROP.pixels[:24, :32].copy()))
    command = [
        "compress",
        str(source),
        str(target),
        "-a",
        "c3-fast",
        "--steps",
        "20",
        "--target-bytes",
        "300",
    ]
    step, taken = Fit.step, []

    def counted(self):
        taken.append(float(self.lmbda[0]))
        if len(taken) == 30:
            raise MemoryError
        step(self)

    monkeypatch.setattr(Fit, "step", counted)
    assert main(command) == 2 and len(set(taken)) == 2
    assert len(list(tmp_path.glob("out.csga.fit.*"))) == 1
    first = taken[0]
    assert main(command) == 0
    assert first not in taken[30:] and "going on from" in (said := capsys.readouterr()).err
    container = unpack(target.read_bytes())
    assert (container.quality, container.steps) == (
        0,
        20,
    ) and f": lmbda {container.lmbda:g}, after" in said.out
    assert abs(math.log(target.stat().st_size / 300)) <= TOLERANCE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.csga"]


def test_long_fits_are_searched_for_with_short_ones(monkeypatch):
    budgets = []

    def compress(picture, request):
        budgets.append(request.steps)
        size = 1000 * (request.lmbda / 2e-3) ** -0.7 * (1.0 if request.steps is None else 1.1)
        return Coded(int(size), None, None)

    monkeypatch.setattr(files.c3, "compress", compress)
    monkeypatch.setattr(codec, "pack", bytes)
    data, _ = compress_picture(CROP, model="c3", target_bytes=2500)
    assert abs(math.log(len(data) / 2500)) <= TOLERANCE
    assert budgets.count(300) >= 2 and budgets.count(None) <= 2 and budgets[-1] is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"refine": "ssl", "lmbda": 0.01}, "lmbda 0.01 and a target both set the rate"),
        ({"quality": 3}, "mbt2018-mean-small has nothing that moves its rate; name a method of refinement"),
        ({"model": "c3-fast", "quality": 3}, "quality, lmbda and a target all set the rate of c3-fast"),
        ({"model": "diffc-a-small", "bpp": 0.3}, "quality, bpp and a target all set the rate"),
        ({"target_bpp": 1.0, "target_bytes": 9}, "bpp and bytes as target; give one"),
    ],
)
def test_two_rates_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        compress_picture(CROP, **{"target_bpp": 0.5, **options})


def test_the_command_says_what_was_found(tmp_path, capsys):
    source = tmp_path / "in.png"
    files.write_picture(source, CROP)
    common = ["compress", str(source), "--force"]
    assert main([*common, "--target-psnr", "26", "--refine", "ssl", "--steps", "4"]) == 0
    captured = capsys.readouterr()
    found = captured.out.splitlines()[0]
    assert " dB for 26.00 dB: quality " in found and ", lmbda " in found and " attempt" in found
    assert float(found.split(" dB")[0]) == pytest.approx(26, abs=10 * TOLERANCE / math.log(10))
    assert f"{float(found.split(' dB')[0]):.2f} dB, 128x80 pixels" in captured.out.splitlines()[-1]
    assert main([*common, "--target-bytes", "10"]) == 0
    captured = capsys.readouterr()
    assert "10 bytes cannot be had within 2%; the nearest is" in captured.out
    assert "(quality 1); beyond that, another model is better" in captured.out
    assert (tmp_path / "in.csga").is_file()
    assert main(["compress", str(tmp_path), "--force", "--target-bytes", "10"]) == 0
    assert f"10 bytes cannot be had within {TOLERANCE:.0%}; the nearest is" in capsys.readouterr().out
