# SPDX-License-Identifier: Apache-2.0
"""Claims of files/images.py: pixels and colour profile come in as they look and go out as they are;
what cannot be kept is refused with a cure; an output is whole or what it was before."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

from compressai_sga.errors import SgaError
from compressai_sga.files import Picture, images, read_picture, write_picture
from compressai_sga.files.images import INPUT_SUFFIXES, psnr_db_of, replacing

DRAW = np.random.default_rng(0)
RGB = DRAW.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def save(tmp_path):
    """Saves a PIL image and gives the path."""

    def save(image: Image.Image, name: str = "in.png", **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in.png", {}),
        ("in.tif", {}),
        ("in.tiff", {"compression": "tiff_lzw"}),
        ("in.webp", {"lossless": True}),
    ],
)
def test_pixels_and_profile_of_lossless_formats(save, name, options):
    picture = read_picture(save(Image.fromarray(RGB), name, icc_profile=PROFILE, **options))
    assert picture.mode == "RGB" and np.array_equal(picture.pixels, RGB)
    assert picture.profile == PROFILE


def test_jpeg_is_read_as_pillow_decodes_it(save):
    path = save(Image.fromarray(RGB), "in.jpg", icc_profile=PROFILE)
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, np.asarray(Image.open(path))) and picture.profile == PROFILE
    assert read_picture(save(Image.fromarray(GREY), "grey.jpg")).mode == "L"


def test_the_format_is_found_by_content_not_by_name(save):
    path = save(Image.fromarray(RGB)).rename
    assert read_picture(path(str(save(Image.fromarray(RGB), "other.png")) + ".jpg")).mode == "RGB"


def test_grey_bilevel_and_palette(save):
    assert np.array_equal(read_picture(save(Image.fromarray(GREY))).pixels, GREY)
    bilevel = Image.fromarray(GREY > 128)
    assert np.array_equal(read_picture(save(bilevel)).pixels, 255 * (GREY > 128))
    palette = Image.fromarray(RGB).quantize(16)
    picture = read_picture(save(palette))
    assert picture.mode == "RGB" and np.array_equal(picture.pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("name", ["in.bmp", "in.ppm", "in.gif", "in.jxl", "in.avif"])
def test_pixels_of_further_formats(save, name):
    if name == "in.jxl":
        pytest.importorskip("pillow_jxl")
    if name == "in.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(RGB).quantize(16) if name == "in.gif" else Image.fromarray(RGB)
    path = save(image, name, **({"lossless": True} if name == "in.jxl" else {}))
    for source in (path, path.read_bytes()):
        picture = read_picture(source)
        expected = Image.open(path) if name == "in.avif" else image
        assert picture.mode == "RGB" and np.array_equal(picture.pixels, np.asarray(expected.convert("RGB")))
    assert path.suffix in INPUT_SUFFIXES


PLUG_IN = [(b"\0\0\0\x18ftypheic", "pillow-heif"), (b"\xff\x0a\xfa", "pillow-jxl-plugin")]


@pytest.mark.parametrize(("head", "package"), PLUG_IN, ids=["heif", "jxl"])
def test_formats_of_plug_ins(tmp_path, monkeypatch, head, package):
    """Without the package the message names it; with it, the image is read."""
    path = tmp_path / "photo"
    path.write_bytes(head + bytes(40))
    module = package.replace("-plugin", "").replace("-", "_")
    name = {"pillow_heif": "HEIF", "pillow_jxl": "JXL"}[module]
    monkeypatch.setitem(sys.modules, module, None)
    for known in (Image.ID, Image.OPEN):  # an earlier test may have read such images
        monkeypatch.setattr(Image, "ID" if known is Image.ID else "OPEN", type(known)(known))
    monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr(Image, "ID", [each for each in Image.ID if each != name])
    images._formats.cache_clear()
    try:
        with pytest.raises(SgaError, match=f"which Pillow reads with the package {package}; pip install"):
            read_picture(path)

        class Plain(ImageFile.ImageFile):
            format = name

            def _open(self):
                self._size, self._mode = (3, 2), "RGB"
                self.tile = [("raw", (0, 0, 3, 2), 12, "RGB")]

        plug_in = types.ModuleType(module)
        plug_in.register_heif_opener = lambda: None
        Image.register_open(name, Plain, lambda start: start.startswith(head[:2]))
        monkeypatch.setitem(sys.modules, module, plug_in)
        images._formats.cache_clear()
        assert read_picture(path).pixels.shape == (2, 3, 3)
        deep = head + b"pixi" + bytes([0, 0, 0, 0, 3, 10, 10, 10]) + bytes(40)
        path.write_bytes(deep)
        if name == "HEIF":
            with pytest.raises(SgaError, match="more than 8 bits a channel .RGB, 10 bits"):
                read_picture(path)
    finally:
        images._formats.cache_clear()


def test_sixteen_bits_of_ppm_are_refused_those_of_a_bmp_pixel_are_not(tmp_path):
    path = tmp_path / "in.ppm"
    path.write_bytes(b"P6 2 1 65535\n" + bytes(range(12)))
    with pytest.raises(SgaError, match="more than 8 bits a channel"):
        read_picture(path)
    head = struct.pack("<2sIHHI", b"BM", 70, 0, 0, 66) + struct.pack(
        "<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0
    )
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    path.write_bytes(head + masks + struct.pack("<HH", 0xF800, 0x001F))
    assert read_picture(path).pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["in.png", "in.jpg", "in.tif"])
def test_orientation_is_applied(save, name, orientation):
    stripes = np.zeros((16, 32, 3), np.uint8)
    stripes[:8, :16] = 255  # white where the camera had its upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if name == "in.jpg" else {}
    pixels = read_picture(save(Image.fromarray(stripes), name, exif=exif, **options)).pixels
    assert pixels.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    white = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)][orientation - 1]
    corners = {(i, j): pixels[i, j, 0] > 128 for i in (0, -1) for j in (0, -1)}
    assert [corner for corner, on in corners.items() if on] == [white]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16", "I", "F", "CMYK", "LAB"])
def test_what_cannot_be_kept_is_refused_with_the_cure(save, mode):
    options, name = {}, "in.tif" if mode in ("F", "CMYK", "LAB", "I") else "in.png"
    if mode in ("RGB", "L"):  # one colour means transparent
        image = Image.fromarray(RGB if mode == "RGB" else GREY)
        options["transparency"] = tuple(map(int, RGB[0, 0])) if mode == "RGB" else int(GREY[0, 0])
    elif mode == "P":
        image = Image.fromarray(RGB).quantize(16)
        options["transparency"] = image.getpixel((0, 0))
    elif mode in ("I;16", "I", "F"):
        image = Image.fromarray(GREY.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    elif mode == "LAB":
        image = Image.fromarray(RGB, "LAB")
    elif mode == "CMYK":
        image = Image.fromarray(RGB).convert("CMYK")
    else:
        image = Image.fromarray(RGB if mode == "RGBA" else GREY).convert(mode)
        image.putalpha(Image.fromarray(np.where(GREY > 9, 255, 254).astype(np.uint8)))
    cure = {"I;16": "convert it to 8 bits", "I": "convert it to 8 bits", "F": "convert it to 8 bits"}
    cure |= {"CMYK": "convert it to RGB", "LAB": "convert it to RGB"}
    with pytest.raises(SgaError, match=cure.get(mode, "transparent pixels .* put it on a background")):
        read_picture(save(image, name, **options))


def deep_png(path, channels: int):
    """A PNG of 16 bits a channel, which Pillow cannot write but for grey."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(range(4 * 2 * channels)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_refused_even_where_pillow_hides_them(tmp_path, channels):
    path = deep_png(tmp_path / "deep.png", channels)
    with pytest.raises(SgaError, match="more than 8 bits a channel .* convert it to 8 bits first"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_opaque_alpha_channel_is_dropped(save, mode):
    options = {}
    if mode == "P":
        image = Image.fromarray(RGB).quantize(16)
        options["transparency"] = bytes([255] * 16)
        expected = np.asarray(image.convert("RGB"))
    else:
        expected = RGB if mode == "RGBA" else GREY
        image = Image.fromarray(expected).convert(mode)
    picture = read_picture(save(image, icc_profile=PROFILE, **options))
    assert np.array_equal(picture.pixels, expected) and picture.profile == PROFILE


def test_psnr_is_that_of_all_values():
    other = RGB.copy()
    other[3:5, ::2, 1] ^= 9
    error = np.square(other.astype(float) - RGB).mean()
    assert psnr_db_of(other, RGB) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)
    assert psnr_db_of(GREY, GREY) == float("inf")


def test_several_frames_are_refused(save):
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    for name in ("in.webp", "in.tif", "in.png"):
        with pytest.raises(SgaError, match="has 2 frames, a .csga file holds one"):
            read_picture(save(frames[0], name, save_all=True, append_images=frames[1:]))


def test_of_a_phones_jpeg_the_image_is_taken_not_its_accessory(save):
    path = save(
        Image.fromarray(RGB), "in.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(GREY)]
    )
    assert read_picture(path).pixels.shape == RGB.shape


def test_what_is_no_image_or_a_damaged_one(tmp_path, save):
    path = tmp_path / "x.png"
    with pytest.raises(SgaError, match="cannot be read: .*No such file"):
        read_picture(path)
    with pytest.raises(SgaError, match="cannot be read: .*directory"):
        read_picture(tmp_path)
    for content, match in (
        (b"", "PNG, JPEG, WebP, TIFF, BMP, PPM and GIF can be read"),
        (b"8BPS" + bytes(30), "PNG, JPEG, WebP, TIFF, BMP, PPM and GIF can be read"),
        (b"\xcaSGA\x01", "is a .csga file already, which `decompress` takes"),
    ):
        path.write_bytes(content)
        with pytest.raises(SgaError, match=match):
            read_picture(path)
    for name in ("in.png", "in.jpg", "in.tif", "in.webp"):
        data = save(Image.fromarray(RGB), name).read_bytes()
        for length in range(1, len(data) - 12, max(1, len(data) // 40)):
            path.write_bytes(data[:length])
            try:
                picture = read_picture(path)
            except SgaError:
                continue
            assert picture.pixels.shape == RGB.shape  # only the end of the file's frame was missing


def test_a_damaged_tiff_is_never_a_traceback(tmp_path, save):
    """Pillow has TypeErrors for some."""
    data, path, draw = save(Image.fromarray(RGB), "in.tif").read_bytes(), tmp_path / "x.tif", random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(300)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_picture(path)
        except SgaError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("name", ["out.png", "out.TIF", "out.tiff"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "L"])
def test_outputs_are_read_back_alike(tmp_path, name, pixels):
    for profile in (None, PROFILE):
        write_picture(tmp_path / name, Picture(pixels, profile))
        back = read_picture(tmp_path / name)
        assert np.array_equal(back.pixels, pixels) and back.profile == profile


def test_lossy_outputs_are_refused(tmp_path):
    for name in ("out.jpg", "out", "out.webp"):
        with pytest.raises(SgaError, match="written without loss, as .png, .tif, .tiff"):
            write_picture(tmp_path / name, Picture(RGB))
    assert not list(tmp_path.iterdir())


def test_a_failed_output_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.bin"
    for old in (None, b"old"):
        if old:
            path.write_bytes(old)
        with pytest.raises(ZeroDivisionError), replacing(path) as file:
            file.write(b"new")
            raise ZeroDivisionError
        assert [p.name for p in tmp_path.iterdir()] == (["out.bin"] if old else [])
    assert path.read_bytes() == b"old"
    for wrong in (tmp_path / "none" / "out.bin", tmp_path):
        with pytest.raises(SgaError, match="cannot be written|no ordinary file"), replacing(wrong):
            pass


def test_an_output_keeps_permissions_and_links(tmp_path):
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    with replacing(link) as file:
        file.write(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new" and real.stat().st_mode & 0o777 == 0o640
    with replacing(tmp_path / "fresh") as file:
        file.write(b"x")
    usual = tmp_path / "usual"
    usual.write_bytes(b"x")
    assert (tmp_path / "fresh").stat().st_mode == usual.stat().st_mode


KILLED_WHILE_WRITING = """
import sys, time
from compressai_sga.files.images import replacing
with replacing(sys.argv[1]) as first, replacing(sys.argv[2]) as second:
    for file in (first, second):
        file.write(bytes(100_000))
        file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_half_output(tmp_path):
    fresh, old = tmp_path / "fresh.csga", tmp_path / "old.csga"
    old.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(fresh), str(old)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not fresh.exists() and old.read_bytes() == b"old"
    left = sorted(p for p in tmp_path.iterdir() if p != old)
    assert [p.suffix for p in left] == [".part"] * 2
    assert all(p.stat().st_size == 100_000 for p in left)
