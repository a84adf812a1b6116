# SPDX-License-Identifier: Apache-2.0
"""Claims of files/: the image that comes back is the model's own, at any size and colour mode, in any
process and on any instruction set; the zoo's other weights are refused; the commands do what they say."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compressai_sga import coding, files, zoo
from compressai_sga.__main__ import main
from compressai_sga.coding.container import CODERS, VERSION, pack, unpack
from compressai_sga.coding.sizes import padding
from compressai_sga.errors import BitstreamError, SgaError
from compressai_sga.files import Picture, compress_picture, decompress_picture, models, read_picture
from compressai_sga.files.images import psnr_db_of
from compressai_sga.files.models import borrowed, choose

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
KODAK = Path(os.environ.get("COMPRESSAI_SGA_DATA", HERE.parent.parent.parent / "shared" / "data")) / "kodak"
CODECS = [record for record in zoo.list_models() if not record.architecture.startswith(("hfd", "diffc"))]
MODELS = {record.name: record.quality for record in reversed(CODECS)}  # the lowest of each
SAMPLE = zoo.sample_images()[0]


def crop(height: int, width: int, top: int = 40, left: int = 100) -> Picture:
    """A part of a sample image."""
    return Picture(read_picture(SAMPLE).pixels[top : top + height, left : left + width].copy())


def own(picture: Picture, model: str, quality: int, coder: str) -> tuple[np.ndarray, list[bytes]]:
    """Pixels and strings by the model's own compress and decompress."""
    net = coding.set_coder(zoo.load(model, quality), coder)
    height, width = picture.pixels.shape[:2]
    left, right, top, bottom = pad = padding(width, height, 6)
    x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = net.compress(F.pad(x, pad, mode="replicate"))
        x_hat = net.decompress(**out)["x_hat"]
    x_hat = x_hat[0, :, top : top + height, left : left + width].clamp(0, 1)
    return (255 * x_hat).round().to(torch.uint8).permute(1, 2, 0).numpy(), [s[0] for s in out["strings"]]


def assert_alike(pixels: np.ndarray, expected: np.ndarray, share: float = 1e-3) -> None:
    """The same but for float32 noise in g_s, which decides where a value lies on the edge of rounding."""
    difference = np.abs(pixels.astype(int) - expected)
    assert pixels.shape == expected.shape and difference.max() <= 1
    assert (difference > 0).mean() <= share


@pytest.mark.parametrize("coder", CODERS.values())
@pytest.mark.parametrize("model", MODELS)
def test_the_image_is_the_models_own(model, coder):
    picture = crop(90, 150)
    data, result = compress_picture(picture, model=model, quality=MODELS[model], coder=coder)
    back = decompress_picture(data)
    expected, strings = own(picture, model, MODELS[model], coder)
    assert result is None and back.mode == "RGB"
    assert_alike(back.pixels, expected)
    container = unpack(data)
    header = len(data) - sum(len(s) for s in container.strings)
    assert header <= 45 + len(model) + 5 * max(0, len(container.strings) - 2)  # lengths and shapes of groups
    # Only the table of a symbol or two may differ from what float32 gives.
    assert abs(sum(map(len, strings)) - sum(map(len, unpack(data).strings))) <= 2


@pytest.mark.parametrize("name", ["kodim03.png", "kodim09.png"])
def test_whole_kodak_images(name):
    check_kodak(name)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 25))
def test_all_of_kodak(number):
    check_kodak(f"kodim{number:02d}.png")


def check_kodak(name: str) -> None:
    if not (KODAK / name).is_file():
        pytest.skip(f"{KODAK / name} is not there")
    picture = read_picture(KODAK / name)
    data, _ = compress_picture(picture)
    expected, strings = own(picture, zoo.DEFAULT_MODEL, 3, files.DEFAULT_CODER)
    assert_alike(decompress_picture(data).pixels, expected, share=1e-4)
    assert len(data) <= 1.002 * sum(map(len, strings)) + 62


@pytest.mark.slow
def test_a_constant_image_of_16_megapixels(tmp_path):
    """Minutes, and 8 GB of memory."""
    picture = Picture(np.full((4096, 4096, 3), 128, np.uint8))
    data, _ = compress_picture(picture)
    assert len(data) < 150_000
    assert np.abs(decompress_picture(data).pixels.astype(int) - 128).max() < 20


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 200), (200, 1), (2, 3), (63, 65), (64, 64), (65, 129)]
)
def test_every_size(height, width):
    picture = Picture(np.full((height, width, 3), (200, 120, 60), np.uint8))
    back = decompress_picture(compress_picture(picture, quality=6)[0])
    assert back.pixels.shape == (height, width, 3)
    assert np.abs(back.pixels.astype(int) - picture.pixels).max() < 25  # also at the border


def test_threads_do_not_disturb_each_other():
    options = [{"coder": coder, "model": model} for coder in CODERS.values() for model in MODELS]
    coded = [(compress_picture(crop(64, 64), **option)[0]) for option in options]
    expected = [decompress_picture(data).pixels for data in coded]
    with ThreadPoolExecutor(4) as pool:
        for picture, pixels in zip(pool.map(decompress_picture, coded), expected):
            assert np.array_equal(picture.pixels, pixels)


def test_grey_images_stay_grey():
    picture = Picture(crop(70, 100).pixels.mean(2).astype(np.uint8))
    back = decompress_picture(compress_picture(picture, quality=6)[0])
    assert back.mode == "L" and back.pixels.shape == (70, 100)
    error = np.mean((back.pixels.astype(float) - picture.pixels) ** 2)
    assert 10 * np.log10(255**2 / error) > 28


def test_the_profile_goes_along():
    profile = bytes(range(256)) * 4
    data, _ = compress_picture(Picture(crop(20, 20).pixels, profile))
    assert decompress_picture(data).profile == profile
    parts = files.describe(data).part_bytes
    assert list(parts) == ["y", "z", "profile", "header"] and sum(parts.values()) == len(data)
    with pytest.raises(SgaError, match="profile has 1048577 bytes, at most 1048576"):
        compress_picture(Picture(crop(20, 20).pixels, bytes(2**20 + 1)))


def test_refinement_is_what_the_file_holds():
    picture = crop(64, 128)
    steps = []
    data, result = compress_picture(
        picture, refine="ssl", steps=25, lmbda=0.013, seed=1, on_step=lambda *step: steps.append(step)
    )
    assert len(steps) == 25 and result.lmbda == 0.013 and result.config.seed == 1
    assert result.after.loss < result.before.loss
    assert [s[0] for s in result.strings] == list(unpack(data).strings)
    x_hat = (255 * result.x_hat[0]).round().permute(1, 2, 0).numpy()
    assert_alike(decompress_picture(data).pixels, x_hat)
    again, _ = compress_picture(picture, refine="ssl", steps=25, lmbda=0.013, seed=1)
    assert again == data


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 5}, "steps 5 is for refinement"),
        ({"lmbda": 0.01}, "lmbda 0.01 is for refinement"),
        ({"refine": "magic"}, "unknown refinement method 'magic'; choose from"),
        ({"refine": "ssl", "steps": -1}, "steps must be a whole number from 0"),
        ({"refine": "ssl", "lmbda": 0.0}, "lmbda must be above 0"),
        ({"coder": "ans"}, "no coder of files is called 'ans'; choose from constriction-ans"),
        ({"model": "gdn"}, "no model called 'gdn' makes files; there are"),
        ({"quality": 9}, "no quality 9; there are 1, 2"),
        ({"metric": "ms-ssim"}, "not trained for metric 'ms-ssim'"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        compress_picture(crop(8, 8), **options)


def test_other_weights_are_refused_with_both_names():
    container = unpack(compress_picture(crop(8, 8))[0])
    record = next(r for r in zoo.list_models() if (r.name, r.quality) == (zoo.DEFAULT_MODEL, 3))
    other = dataclasses.replace(container, weights=b"\x01" * 8)
    with pytest.raises(BitstreamError) as error:
        decompress_picture(pack(other))
    for part in ("0101010101010101", record.sha256[:16], record.file, "mbt2018-mean-small, quality 3"):
        assert part in str(error.value)
    assert not files.describe(pack(other)).weights_known
    for change in ({"model": "elic-2030"}, {"quality": 77}, {"metric": "ms-ssim"}):
        with pytest.raises(BitstreamError, match="which this zoo does not have; it has .*mbt2018-mean-small"):
            decompress_picture(pack(dataclasses.replace(container, **change)))


@pytest.mark.parametrize("change", [{"width": 69}, {"height": 91}, {"mode": "L"}, {"profile": b"other"}])
@pytest.mark.parametrize("name", ["mean-exact-2", "c3-fast-2"])
def test_the_same_symbols_as_another_picture_are_refused(name, change):
    """A file sealed again with another crop, other colours, another profile, or as one of version 1."""
    container = unpack((GOLDEN / f"{name}.csga").read_bytes())
    assert container.version == 2 and len(container.profile) > 100
    for version in (1, 2):
        resealed = pack(dataclasses.replace(container, **change, version=version))
        with pytest.raises(BitstreamError, match="have the checksum|the file is of"):
            decompress_picture(resealed)


def test_a_changed_weight_in_the_zoo_is_noticed(monkeypatch):
    data, _ = compress_picture(crop(8, 8))
    records = [dataclasses.replace(r, sha256=r.sha256[::-1]) for r in zoo.list_models()]
    monkeypatch.setattr(zoo, "list_models", lambda: records)
    with pytest.raises(BitstreamError, match="decode other images; install the compressai-sga that made"):
        decompress_picture(data)


def test_other_gaussian_tables_matter_only_to_coders_that_use_them(monkeypatch):
    models._load.cache_clear()
    monkeypatch.setattr(zoo, "tables_checksum", lambda net: "00000000")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress_picture(crop(8, 8), coder="constriction-exact")
    with pytest.warns(UserWarning, match="files of constriction-ans cannot be exchanged"):
        compress_picture(crop(8, 8), coder="constriction-ans")
    models._load.cache_clear()


def test_what_does_not_decode_is_not_written(tmp_path, monkeypatch):
    target = tmp_path / "out.csga"
    target.write_bytes(b"old")
    with borrowed(choose(zoo.DEFAULT_MODEL, 3, "mse"), files.DEFAULT_CODER) as net:
        out = net.compress(torch.zeros(1, 3, 64, 64)) | {"strings": [[b"y"], [b"z"]]}
        monkeypatch.setattr(net, "compress", lambda x: out, raising=False)
    with pytest.raises(SgaError, match="coded here cannot be decoded here"):
        files.compress_file(SAMPLE, target)
    assert [p.name for p in tmp_path.iterdir()] == ["out.csga"] and target.read_bytes() == b"old"


def test_lack_of_memory_is_not_the_fault_of_the_file(tmp_path, capsys, monkeypatch):
    source = tmp_path / "in.csga"
    source.write_bytes(compress_picture(Picture(np.zeros((20, 30), np.uint8)))[0])

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    with borrowed(choose(zoo.DEFAULT_MODEL, 3, "mse"), files.DEFAULT_CODER) as net:
        monkeypatch.setattr(net, "decompress", fail, raising=False)
    assert main(["decompress", str(source)]) == 2
    assert capsys.readouterr().err.startswith("error: the image needs more memory than there is")


# --- Commands -----------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    files.write_picture(path, crop(96, 130))
    return path


def test_the_three_commands(tmp_path, image, capsys):
    target, back = tmp_path / "out.csga", tmp_path / "back.png"
    assert main(["compress", str(image), str(target), "--quality", "2", "--coder", "constriction-ans"]) == 0
    said = capsys.readouterr().out
    assert main(["info", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model    mbt2018-mean-small, quality 2, mse"
    assert "constriction-ans" in lines[2] and "130x96 pixels, RGB" in lines[3]
    parts = {line.split()[0]: int(line.split()[1]) for line in lines[lines.index("") + 2 :]}
    assert set(parts) == {"y", "z", "header", "total"}
    size, bpp = target.stat().st_size, 8 * target.stat().st_size / (130 * 96)
    told = f"{size} bytes, {bpp:.4f} bpp (header {parts['header'] / parts['total']:.1%})"
    assert f"file     {told}, CRC-32 correct" in lines and told in said
    assert main(["info", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["quality"], found["bytes"]) == ("mbt2018-mean-small", 2, size)
    assert found["bpp"] == pytest.approx(bpp) and found["part_bytes"]["header"] == parts["header"] / 8
    assert parts["total"] == 8 * target.stat().st_size == parts["y"] + parts["z"] + parts["header"]
    assert main(["decompress", str(target), str(back)]) == 0
    assert np.array_equal(read_picture(back).pixels, decompress_picture(target.read_bytes()).pixels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.png", "in.png", "out.csga"]


def test_refinement_by_command(tmp_path, image, capsys):
    target = tmp_path / "out.csga"
    options = ["--refine", "fast", "--steps", "10", "--lmbda", "0.0035", "--seed", "3"]
    assert main(["compress", str(image), str(target), *options]) == 0
    captured = capsys.readouterr()
    assert "refined by soft-round, lmbda 0.0035: " in captured.out and "10/10" in captured.err
    bpp = re.findall(r"([\d.]+) bpp", captured.out)  # of the whole file, everywhere
    assert len(bpp) == 2 and bpp[0] == bpp[1] == f"{8 * target.stat().st_size / (96 * 130):.4f}"
    shown = float(re.findall(r"([\d.]+) dB,", captured.out)[0])
    decoded = decompress_picture(target.read_bytes()).pixels
    assert shown == pytest.approx(psnr_db_of(decoded, read_picture(image).pixels), abs=0.006)
    plain, _ = compress_picture(read_picture(image))
    assert target.stat().st_size < len(plain)


@pytest.mark.parametrize("command", ["compress", "decompress", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"compressai_sga {command}" in capsys.readouterr().out


def test_errors_are_one_sentence(tmp_path, image, capsys):
    target = tmp_path / "out.csga"
    files.compress_file(image, target)
    before = target.read_bytes()
    damaged = tmp_path / "damaged.csga"
    damaged.write_bytes(before[:-1])
    none = str(tmp_path / "none.png")
    other = str(tmp_path / "other.csga")
    for arguments, match in (
        (["compress", none, other], "none.png cannot be read: "),
        (["compress", str(image), str(target)], "out.csga is there already; --force replaces it"),
        (["decompress", str(target), str(image)], "in.png is there already; --force replaces it"),
        (["compress", str(image), str(tmp_path / "out.png")], "does not end in .csga"),
        (["compress", str(target), other], "is a .csga file already"),
        (["compress", str(image), other, "--steps", "3"], "steps 3 is for refinement"),
        (["compress", str(image), other, "--model", "x"], "no model called 'x' makes files"),
        (["compress", str(image), other, "--device", "moon"], "device moon: "),
        (["compress", str(image), other, "--checkpoint", none], "name its architecture too, with -a"),
        (["compress", str(image), other, "--target-bpp", "-1"], "it must be positive and finite"),
        (["compress", str(image), str(tmp_path / "none" / "out.csga")], "cannot be written: No such"),
        (["decompress", str(target), str(tmp_path / "out.jpg")], "written without loss"),
        (["decompress", str(damaged), none], "damaged.csga: the file is cut off"),
        (["info", str(image)], "in.png: not a .csga file"),
        (["info", none], "none.png cannot be read"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and match in error
    assert target.read_bytes() == before and not Path(none).exists()


def test_an_interrupt_leaves_the_old_output(tmp_path, image, capsys, monkeypatch):
    target = tmp_path / "out.csga"
    target.write_bytes(b"old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.transform, "refine_latents", interrupt)
    assert main(["compress", str(image), str(target), "--refine", "ssl", "--force"]) == 130
    assert "interrupted" in capsys.readouterr().err and target.read_bytes() == b"old"


# --- Other processes ----------------------------------------------------------------------------

DECODE = """
import json, sys, torch
torch.set_num_threads(2)
from pathlib import Path
from compressai_sga import files
for path in sys.argv[1:]:
    files.decompress_file(path, Path(path).with_suffix(".png"))
"""


def decode_elsewhere(paths: list[Path], **environment: str) -> list[np.ndarray]:
    """Pixels of files by another process; `environment` is added to this one's."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODE, *map(str, paths)],
        check=True,
        env={**os.environ, **environment},
    )
    return [read_picture(path.with_suffix(".png")).pixels for path in paths]


def test_files_decode_with_other_instructions_and_threads(tmp_path):
    """SSE instead of this machine's best, in a process where CompressAI was to be left alone."""
    paths, expected = [], []
    for i, (model, picture) in enumerate(
        [("mbt2018-mean-small", crop(192, 156, 0)), ("mbt2018-small", crop(96, 96))]
    ):
        data, _ = compress_picture(picture, model=model)
        paths.append(tmp_path / f"{i}.csga")
        paths[-1].write_bytes(data)
        expected.append(decompress_picture(data).pixels)
    pixels = decode_elsewhere(
        paths, ONEDNN_MAX_CPU_ISA="SSE41", ATEN_CPU_CAPABILITY="default", COMPRESSAI_SGA_DISABLE="1"
    )
    for got, wanted in zip(pixels, expected):
        assert_alike(got, wanted)


def test_golden_files():
    """Made by tests/golden/make.py; see the README there."""
    expected = json.loads((GOLDEN / "golden.json").read_text())
    paths = sorted(GOLDEN.glob("*.csga"))
    assert {path.name for path in paths} == set(expected)
    assert {want["version"] for want in expected.values()} == {1, VERSION}
    for path in paths:
        description, want = files.describe_file(path), expected[path.name]
        assert description.file_bytes == want["bytes"]
        assert f"{description.container.checksum:08x}" == want["checksum"]
        assert description.container.version == want["version"]
        assert description.container.coder == want["coder"]
        back = decompress_picture(path.read_bytes())
        image = read_picture(path.with_suffix(".png"))
        assert (back.mode, back.profile) == (image.mode, image.profile)
        assert_alike(back.pixels, image.pixels, share=1)
