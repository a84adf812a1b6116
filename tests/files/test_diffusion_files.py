# SPDX-License-Identifier: Apache-2.0
"""Claims of files/ for models of diffusion: HFD's file is its first stage's, another decoder reads it;
DiffC's decodes from any prefix, and options belong to the models that have them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compressai_sga import __main__, zoo
from compressai_sga.coding.container import checksum_of, pack, unpack
from compressai_sga.errors import BitstreamError, SgaError
from compressai_sga.files import Picture, compress_picture, decompress_picture, describe, read_picture
from compressai_sga.files.images import tensor_of
from compressai_sga.models.diffc import codec

RATE = 0.4


def crop(height: int, width: int) -> Picture:
    """A part of a sample image."""
    pixels = read_picture(zoo.sample_images()[1]).pixels
    return Picture(pixels[40 : 40 + height, 60 : 60 + width].copy())


def squared_error(a: Picture, b: Picture) -> float:
    return float(np.square(a.pixels.astype(float) - b.pixels).mean())


@pytest.fixture(scope="module")
def sent() -> tuple[Picture, bytes]:
    """A picture and its file by diffc-f-small."""
    picture = crop(64, 72)
    data, result = compress_picture(picture, model="diffc-f-small", bpp=RATE)
    assert result is None
    return picture, data


def test_the_strings_of_hfd_are_its_first_stages():
    picture = crop(70, 90)
    drawn, _ = compress_picture(picture, model="hfd-small", quality=1)
    first, _ = compress_picture(picture, model="mbt2018-mean-small", quality=1)
    assert unpack(drawn).strings == unpack(first).strings
    assert len(drawn) == len(first) - len("mbt2018-mean-small") + len("hfd-small")
    expected = decompress_picture(first)
    assert np.array_equal(decompress_picture(drawn, realism=0.0).pixels, expected.pixels)
    draw = decompress_picture(drawn, steps=2)
    assert np.array_equal(decompress_picture(drawn, steps=2).pixels, draw.pixels)
    assert not np.array_equal(draw.pixels, expected.pixels)
    assert not np.array_equal(decompress_picture(drawn, steps=2, seed=5).pixels, draw.pixels)
    between = decompress_picture(drawn, steps=2, realism=0.5)
    assert 0 < squared_error(between, expected) < squared_error(draw, expected)
    assert describe(drawn).weights_known


def test_options_of_one_file_do_not_reach_the_next():
    data, _ = compress_picture(crop(64, 64), model="hfd-small", quality=1)
    before = decompress_picture(data, realism=0.0)
    with pytest.raises(ValueError, match="realism is 2"):
        decompress_picture(data, realism=2.0)
    with pytest.raises(ValueError, match="hfd-small has no option bpp; it has steps, seed, realism"):
        decompress_picture(data, bpp=1.0)
    assert not np.array_equal(decompress_picture(data, steps=2).pixels, before.pixels)


def test_hfd_refines_its_first_stage():
    picture = crop(64, 64)
    plain, _ = compress_picture(picture, model="hfd-small", quality=1)
    data, result = compress_picture(picture, model="hfd-small", quality=1, refine="ssl", steps=4)
    assert result.after.loss <= result.before.loss
    assert decompress_picture(data, steps=2).pixels.shape == (64, 64, 3)
    assert unpack(data).model == "hfd-small" == unpack(plain).model


def test_a_file_of_diffc_is_what_the_model_says(sent):
    picture, data = sent
    container = unpack(data)
    assert (container.quality, container.stride, container.shape, container.symbols) == (0, 0, 0, 0)
    assert container.checksum == checksum_of(container, 0)
    net = zoo.load("diffc-f-small", 1, bpp=RATE, steps=8)
    out = net.compress(tensor_of(picture))
    assert container.strings == (out["strings"][0][0],)
    x_hat = net.decompress(**out)["x_hat"][0]
    expected = (255 * x_hat).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(decompress_picture(data, steps=8).pixels, expected)
    assert abs(8 * len(container.strings[0]) / (64 * 72) - RATE) < 0.2
    a, _ = compress_picture(picture, model="diffc-a-small", bpp=RATE)
    assert unpack(a).strings == container.strings
    assert not np.array_equal(decompress_picture(a, steps=8).pixels, expected)


def test_any_prefix_of_a_file_decodes_and_more_of_it_is_nearer(sent):
    picture, data = sent
    head = len(data) - len(unpack(data).strings[0]) - 4
    errors = []
    for length in (head + 12, (head + len(data)) // 2, len(data) - 4, len(data)):
        errors.append(squared_error(decompress_picture(data, max_bytes=length, steps=4), picture))
    assert errors[0] >= errors[1] > errors[2] == errors[3]
    assert np.array_equal(  # a file that ends there is as good as the option
        decompress_picture(data[: head + 60], max_bytes=head + 60, steps=4).pixels,
        decompress_picture(data, max_bytes=head + 60, steps=4).pixels,
    )
    with pytest.raises(BitstreamError, match="hold none of its|inside its header"):
        decompress_picture(data, max_bytes=head + 1)
    with pytest.raises(BitstreamError, match="cut off.*max_bytes"):
        decompress_picture(data[:-10])


def test_heads_that_no_encoder_wrote_are_damage(sent):
    """With max_bytes no checksum covers them: another model, and an image that the network cannot see."""
    _, data = sent
    container = unpack(data)
    with pytest.raises(BitstreamError, match="difnc-f-small"):
        decompress_picture(data.replace(b"diffc", b"difnc", 1), max_bytes=len(data) - 4)
    thin = pack(dataclasses.replace(container, width=3988, height=2))
    with pytest.raises(BitstreamError, match="3988 x 2 px, smaller than what diffc-f-small codes"):
        decompress_picture(thin, max_bytes=len(thin) - 4, steps=2)


def test_nothing_of_an_images_size_is_made_for_bytes_that_hold_no_step(sent, monkeypatch):
    """A few bytes may announce millions of pixels, under a correct CRC or without an end to check."""
    _, data = sent
    container = unpack(data)
    header = container.strings[0][:6]
    monkeypatch.setattr(codec, "_start", lambda *_: pytest.fail("made noise"))
    huge = dataclasses.replace(container, width=4096, height=4096, strings=(header + bytes(40),))
    with pytest.raises(BitstreamError, match="of whose file 108 bytes are there: at most 8192 pixels"):
        decompress_picture(pack(huge)[:108], max_bytes=108)
    net = zoo.load("diffc-f-small", 1)
    for string in (header + bytes(40), header + bytes(range(40))):
        with pytest.raises(BitstreamError, match="hold none of its|inside its header"):
            net.decompress([[string]], (4096, 4096), max_bytes=46)
    for seed in range(5):  # as many pixels as 2 kB may announce
        string = header + np.random.default_rng(seed).bytes(1980)
        whole = dataclasses.replace(container, width=1024, height=1000, strings=(string,))
        whole = dataclasses.replace(whole, checksum=checksum_of(whole, 0))
        with pytest.raises(BitstreamError, match="cut or damaged|hold none"):
            decompress_picture(pack(whole))


def test_prefixes_are_for_diffc():
    data, _ = compress_picture(crop(64, 64), quality=1)
    with pytest.raises(
        ValueError, match="max_bytes is for files of DiffC, this one is of mbt2018-mean-small"
    ):
        decompress_picture(data, max_bytes=len(data))
    with pytest.raises(ValueError, match="max_bytes is 0"):
        decompress_picture(data, max_bytes=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"coder": "constriction-ans"}, "coder constriction-ans: diffc-f-small has no such option"),
        ({"refine": "ssl"}, "refine ssl: diffc-f-small has no such option"),
        ({"steps": 3}, "steps 3: diffc-f-small has no such option"),
        ({"bpp": -1.0}, "bpp is -1.0; it must be positive"),
        ({"bpp": 1e300}, r"1e\+300 bits a pixel: the image itself has 24, .* about 4.2 of an average image"),
        ({"model": "mbt2018-mean-small", "bpp": 1.0}, "bpp 1.0: mbt2018-mean-small has no such option"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        compress_picture(crop(64, 64), **{"model": "diffc-f-small", **options})


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(SgaError, match="px"):
        compress_picture(crop(6, 70), model="diffc-f-small")


def test_a_changed_file_ends_in_an_error(sent):
    """Under a correct CRC, as somebody would write it who wants to do harm."""
    _, data = sent
    container = unpack(data)
    string = container.strings[0]
    for place in (0, len(string) // 2):
        wrong = string[:place] + bytes([string[place] ^ 0x55]) + string[place + 1 :]
        with pytest.raises(BitstreamError):
            decompress_picture(pack(dataclasses.replace(container, strings=(wrong,))))
    for change in ({"width": 71}, {"mode": "L"}, {"profile": b"other"}, {"model": "diffc-a-small"}):
        with pytest.raises(BitstreamError, match="size, colours and profile have the checksum"):
            decompress_picture(pack(dataclasses.replace(container, **change)))
    for change in ({"symbols": 3}, {"stride": 6}, {"coder": "constriction-ans"}, {"strings": (string, b"")}):
        with pytest.raises(BitstreamError, match="its files have mse, constriction-range"):
            decompress_picture(pack(dataclasses.replace(container, **change)))


def test_the_command_line(sent, tmp_path, python):
    """A file made here is decoded by another process, as a whole and from its beginning."""
    picture, data = sent
    (tmp_path / "a.csga").write_bytes(data)
    python("-m", "compressai_sga", "decompress", tmp_path / "a.csga", tmp_path / "a.png", check=True)
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, decompress_picture(data).pixels)
    assert (
        __main__.main(["decompress", str(tmp_path / "a.csga"), str(tmp_path / "b.png"), "--max-bytes", "200"])
        == 0
    )
    whole, part = (read_picture(tmp_path / name) for name in ("a.png", "b.png"))
    assert squared_error(part, picture) > squared_error(whole, picture)
