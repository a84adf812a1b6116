# SPDX-License-Identifier: Apache-2.0
"""Claims of files/command.py and folders.py: names by default, pipes, folders that go on after an interrupt
and name what failed, checkpoints of one's own; an output that exists is never replaced unasked."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from compressai_sga import files, zoo
from compressai_sga.__main__ import main
from compressai_sga.coding.container import unpack
from compressai_sga.errors import BitstreamError
from compressai_sga.files import Picture, codec, compress_picture, decompress_picture, read_picture
from compressai_sga.files.folders import each
from compressai_sga.files.images import png_of
from compressai_sga.models.c3.fit import checkpoint
from compressai_sga.models.c3.fit.loop import Fit

CROP = Picture(read_picture(zoo.sample_images()[0]).pixels[40:120, 100:228].copy())


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    files.write_picture(path, CROP)
    return path


@pytest.fixture
def pipes(monkeypatch):
    """Runs a command with these bytes on stdin; gives its exit code, stdout and stderr."""

    class Stream(io.TextIOWrapper):
        def __init__(self, content: bytes = b""):
            super().__init__(io.BytesIO(content), write_through=True)

    def run(command: list[str], stdin: bytes) -> tuple[int, bytes, str]:
        with monkeypatch.context() as patches:
            for name, stream in (("stdin", Stream(stdin)), ("stdout", Stream()), ("stderr", Stream())):
                patches.setattr(sys, name, stream)
            code = main(command)
            return code, sys.stdout.buffer.getvalue(), sys.stderr.buffer.getvalue().decode()

    return run


def test_outputs_have_names_by_default_and_are_not_replaced_unasked(image, capsys):
    target = image.with_suffix(".csga")
    assert main(["compress", str(image)]) == 0
    data = target.read_bytes()
    assert main(["compress", str(image), "--quality", "1"]) == 2 and target.read_bytes() == data
    assert main(["compress", str(image), "--quality", "1", "--force"]) == 0 and target.read_bytes() != data
    image.rename(image.with_name("original.png"))
    assert main(["decompress", str(target)]) == 0
    before = image.read_bytes()
    capsys.readouterr()
    assert main(["decompress", str(target)]) == 2 and image.read_bytes() == before
    assert (
        capsys.readouterr().err
        == f"error: {image} is there already; --force replaces it, or name another output\n"
    )
    assert main(["decompress", str(target), "--force"]) == 0


def test_pipes(image, tmp_path, pipes):
    code, data, said = pipes(["compress", "-"], image.read_bytes())
    assert code == 0 and data == compress_picture(CROP)[0] and said.startswith(f"stdout: {len(data)} bytes")
    code, png, said = pipes(["decompress", "-"], data)
    assert code == 0 and said == "stdout: 128x80 pixels, RGB\n"
    decoded = decompress_picture(data).pixels
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), decoded)
    target, back = tmp_path / "out.csga", tmp_path / "back.tif"
    code, out, said = pipes(["compress", "-", str(target)], image.read_bytes())
    assert (code, said) == (0, "") and out.decode().startswith(f"{target}: ") and target.read_bytes() == data
    code, out, _ = pipes(["decompress", "-", str(back)], data)
    assert code == 0 and np.array_equal(read_picture(back).pixels, decoded)
    assert pipes(["compress", str(image), "-"], b"")[1] == data
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(pipes(["decompress", str(target), "-"], b"")[1]))), decoded
    )
    code, out, _ = pipes(["info", "-", "--json"], data)
    assert code == 0 and json.loads(out)["bytes"] == len(data)
    code, out, said = pipes(["compress", "-"], b"no image")
    assert (code, out) == (2, b"") and said.startswith("error: the image is not an image that can be read")
    code, out, said = pipes(["compress", "-", "out.png"], image.read_bytes())
    assert code == 2 and "out.png does not end in .csga" in said


def test_a_fit_of_stdin_goes_on_after_it_was_killed(tmp_path, pipes, monkeypatch):
    target, step, taken = tmp_path / "out.csga", Fit.step, []
    png = png_of(Picture(CROP.pixels[:16, :16].copy()))

    def counted(self):
        taken.append(self.step_count)
        if len(taken) == 31:
            raise MemoryError
        step(self)

    monkeypatch.setattr(Fit, "step", counted)
    monkeypatch.setattr(checkpoint, "EVERY_SEC", 0)
    command = ["compress", "-", str(target), "-a", "c3-fast", "--steps", "40"]
    assert pipes(command, png)[0] == 2
    code, _, said = pipes(command, png)
    assert code == 0 and f"going on from {target}.fit" in said and taken == [*range(31), *range(30, 40)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csga"]


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(command, image, capsys, monkeypatch):
    if command == "decompress":
        image = image.with_suffix(".csga")
        image.write_bytes(compress_picture(CROP)[0])
    for work in ("compress_described", "decompress_picture"):
        monkeypatch.setattr(codec, work, None)
    for target in ("none/out.csga" if command == "compress" else "none/out.png", ""):
        assert main([command, str(image), target]) == 2
        assert capsys.readouterr().err.startswith(f"error: {target} ")
    assert main([command, ""]) == 2
    assert "the input has an empty name" in capsys.readouterr().err


def test_a_device_without_values_is_refused(image, capsys):
    assert main(["compress", str(image), "--device", "meta"]) == 2
    assert capsys.readouterr().err.startswith("error: device meta: ")


def test_a_terminal_gets_no_bytes(image, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["compress", str(image), "-"]) == 2
    assert "stdout is a terminal" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """Two images whose names differ in the ending only, one below, one that is none, and a text."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    small = Image.fromarray(CROP.pixels[:24, :32])
    for name in ("a.png", "a.JPG", "below/b.bmp"):
        small.save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_of_a_folder_at_once(folder, tmp_path, capsys):
    """--jobs gives the same files as one after the other, and the same failures."""
    (folder / "below/b.bmp").unlink()
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["compress", str(folder), str(one), "--quality", "2"]) == 2
    capsys.readouterr()
    assert main(["compress", str(folder), str(two), "--quality", "2", "--jobs", "3"]) == 2
    captured = capsys.readouterr()
    made = [{path.name: path.read_bytes() for path in place.glob("*.csga")} for place in (one, two)]
    assert made[0] == made[1] and len(made[0]) == captured.out.count(" bytes, ") == 2
    assert f"error: {folder / 'broken.png'} is not an image that can be read here" in captured.err
    assert main(["compress", str(folder), str(two), "--quality", "2", "--jobs", "3"]) == 2
    assert "2 there already, 1 failed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compress", str(folder), "--jobs", "0"])
    assert "'0' is no number of images" in capsys.readouterr().err


def test_an_interrupt_reaches_what_runs_at_once(tmp_path, capsys):
    """Three files begin together; Ctrl-C ends the wait, and no further file begins."""
    together, begun = threading.Barrier(3, timeout=20), []
    release = threading.Event()

    def work(source, target):
        begun.append(source)
        if together.wait() == 0:
            signal.raise_signal(signal.SIGINT)
        release.wait(20)
        return "done"

    pairs = [(tmp_path / f"{k}.png", tmp_path / f"{k}.csga") for k in range(6)]
    try:
        assert each(pairs, work, lambda _: True, force=False, title="t", at_once=3) == 130
    finally:
        release.set()
    assert len(begun) == 3
    assert "interrupted; 0 of 6 are done" in capsys.readouterr().err


def test_folders(folder, tmp_path, capsys):
    coded, back = tmp_path / "coded", tmp_path / "back"
    assert main(["compress", str(folder), str(coded), "--quality", "2"]) == 2
    captured = capsys.readouterr()
    names = ["a.JPG.csga", "a.png.csga", "below/b.csga"]
    assert sorted(str(path.relative_to(coded)) for path in coded.rglob("*.csga")) == sorted(names)
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [
        str(coded / name) for name in names
    ]
    assert f"error: {folder / 'broken.png'} is not an image that can be read here" in captured.err
    assert captured.err.endswith(f"3 done, 1 failed\nfailed: {folder / 'broken.png'}\n")
    (folder / "broken.png").unlink()
    before = {name: (coded / name).stat().st_mtime_ns for name in names}
    assert main(["compress", str(folder), str(coded), "--quality", "2"]) == 0
    assert capsys.readouterr().err == "0 done, 3 there already\n"
    assert before == {name: (coded / name).stat().st_mtime_ns for name in names}
    for other in (["--quality", "3"], [], ["-a", "bmshj2018-factorized-small"]):
        assert main(["compress", str(folder), str(coded), *other]) == 2  # nothing is mixed unnoticed
        assert "a.JPG.csga is there already, but older or made otherwise; --force" in capsys.readouterr().err
    later = (coded / names[2]).stat().st_mtime + 10
    os.utime(folder / "below/b.bmp", (later, later))
    assert main(["compress", str(folder), str(coded), "--quality", "2"]) == 2
    assert "2 there already, 1 failed" in capsys.readouterr().err
    assert main(["compress", str(folder), str(coded), "--quality", "2", "--force"]) == 0
    assert capsys.readouterr().err == "3 done\n"
    assert main(["decompress", str(coded), str(back)]) == 0
    assert sorted(str(p.relative_to(back)) for p in back.rglob("*.png")) == [
        "a.JPG.png",
        "a.png.png",
        "below/b.png",
    ]
    assert main(["decompress", str(coded), str(back)]) == 0 and "3 there already" in capsys.readouterr().err
    assert main(["decompress", str(folder), str(back)]) == 2
    assert f"{folder} holds no file that ends in .csga" in capsys.readouterr().err
    assert main(["compress", str(folder), str(coded / names[0])]) == 2
    assert f"{coded / names[0]} is no folder and cannot become one (File exists)" in capsys.readouterr().err


def test_an_interrupted_folder_goes_on(folder, tmp_path, capsys, monkeypatch):
    coded, work, count = tmp_path / "coded", codec.compress_file, []
    (folder / "broken.png").unlink()

    def second(*arguments, **options):
        count.append(arguments)
        if len(count) == 2:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(codec, "compress_file", second)
    assert main(["compress", str(folder), str(coded)]) == 130
    assert "interrupted; 1 of 3 are done, the same command does the rest" in capsys.readouterr().err
    assert main(["compress", str(folder), str(coded)]) == 0 and len(count) == 4
    assert capsys.readouterr().err == "2 done, 1 there already\n"


def test_weights_of_ones_own(image, checkpoint, tmp_path, capsys):
    target, back = tmp_path / "out.csga", tmp_path / "back.png"
    command = ["compress", str(image), str(target), "--checkpoint", str(checkpoint), "-a", "mbt2018-mean"]
    assert main(command) == 0
    assert "mbt2018-mean, a checkpoint" in capsys.readouterr().out
    assert main(["info", str(target)]) == 0
    assert "of a checkpoint that is not the zoo's, for decompress --checkpoint" in capsys.readouterr().out
    assert main(["decompress", str(target), str(back)]) == 2
    assert "made with a checkpoint of mbt2018-mean whose sha256 begins with" in capsys.readouterr().err
    assert main(["decompress", str(target), str(back), "--checkpoint", str(checkpoint)]) == 0
    data = target.read_bytes()
    assert np.array_equal(read_picture(back).pixels, decompress_picture(data, weights=checkpoint).pixels)
    assert unpack(data).quality == 0 and unpack(data).lmbda is None
    other = tmp_path / "other.pth.tar"
    state = torch.load(checkpoint)["state_dict"]
    torch.save({f"module.{name}": value for name, value in state.items()}, other)
    with pytest.raises(BitstreamError, match="give the checkpoint that made the file"):
        decompress_picture(data, weights=other)
    again, result = compress_picture(CROP, model="mbt2018-mean", weights=other, refine="ssl", steps=3)
    assert unpack(again).weights != unpack(data).weights and result is not None
    with pytest.raises(BitstreamError, match="made with mbt2018-mean-small of the zoo, not with"):
        decompress_picture(compress_picture(CROP)[0], weights=other)
    capsys.readouterr()
    for wrong, match in (
        ([*command, "--force", "--quality", "3"], "a checkpoint has the one that it was trained for"),
        (
            [*command[:-1], "bmshj2018-factorized", "--force"],
            "small.pth.tar is not a checkpoint of bmshj2018",
        ),
        ([*command[:-1], "nosuch", "--force"], "no architecture is called 'nosuch'"),
        (["compress", str(image), "--checkpoint", "none", "-a", "mbt2018-mean"], "none cannot be read"),
        ([*command[:-1], "c3", "--force"], "c3 has no such option"),
    ):
        assert main(wrong) == 2
        assert match in capsys.readouterr().err
    assert target.read_bytes() == data
