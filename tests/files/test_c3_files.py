# SPDX-License-Identifier: Apache-2.0
"""Claims of files/fitted.py: the strings are the model's own, nothing else is needed to decode them, every
byte is counted, and a fit that is killed at any point gives the file that it would have given."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import compressai_sga
from compressai_sga import files, zoo
from compressai_sga.__main__ import main
from compressai_sga.coding.container import checksum_of, pack, unpack
from compressai_sga.errors import BitstreamError, SgaError
from compressai_sga.files import Picture, compress_picture, decompress_picture, read_picture
from compressai_sga.files import c3 as module
from compressai_sga.models.c3 import ARCHITECTURES, C3, model
from compressai_sga.models.c3.fit import checkpoint
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.macs import macs_per_pixel
from tests.files.c3_files import blank, container_of, file_of

ROOT = Path(compressai_sga.__file__).resolve().parent.parent


def crop(height: int, width: int) -> Picture:
    """A part of a sample image."""
    return Picture(read_picture(zoo.sample_images()[0]).pixels[40 : 40 + height, 100 : 100 + width].copy())


def fitted_file(picture: Picture, **options) -> bytes:
    rate = {} if "lmbda" in options else {"quality": 5}
    return compress_picture(picture, **{"model": "c3-fast", "steps": 6, **rate, **options})[0]


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "in.png"
    files.write_picture(path, crop(33, 40))
    return path


@pytest.fixture
def no_zoo(monkeypatch):
    """Any look at weights fails."""

    def fail(*_, **__):
        raise AssertionError("weights were wanted")

    monkeypatch.setattr(zoo, "load", fail)
    monkeypatch.setattr(zoo, "list_models", fail)


# --- What a file holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_strings_and_image_are_the_models_own(name, no_zoo):
    picture = crop(37, 45)
    data = fitted_file(picture, model=name, lmbda=1e-3, seed=3)
    x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 255
    out = ARCHITECTURES[name](lmbda=1e-3, steps=6, seed=3).compress(x)
    container = unpack(data)
    assert list(container.strings) == [part[0] for part in out["strings"]]
    assert (container.model, container.quality, container.shape, container.stride) == (name, 0, 0, 0)
    x_hat = C3().decompress(out["strings"], out["shape"])["x_hat"][0]
    back = decompress_picture(data)
    assert np.array_equal(back.pixels, (x_hat * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3), (65, 31)], ids=lambda side: str(side)
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_size_and_mode_and_every_byte(height, width, mode):
    picture = crop(height, width)
    if mode == "L":
        picture = Picture(picture.pixels.mean(2).astype(np.uint8))
    data = fitted_file(picture, steps=30)
    back = decompress_picture(data)
    assert back.mode == mode and back.pixels.shape == picture.pixels.shape
    flat = np.full_like(picture.pixels, 128)  # what a decoder that lost everything would give
    error, lost = (np.abs(pixels.astype(int) - picture.pixels).mean() for pixels in (back.pixels, flat))
    assert error < lost
    description = files.describe(data)
    parts = description.part_bytes
    strings = unpack(data).strings
    assert parts == {"nets": len(strings[0]), "latents": len(strings[1]), "header": parts["header"]}
    assert sum(parts.values()) == len(data) and 40 <= parts["header"] - len("c3-fast") <= 43


def test_the_profile_goes_along_and_blank_images_are_filled():
    profile = bytes(range(256)) * 4
    data = fitted_file(Picture(crop(9, 9).pixels, profile))
    assert decompress_picture(data).profile == profile
    data = file_of(*blank((256, 300)))
    assert 0 <= len(data) - 256 * 300 // 512 <= 5 and files.describe(data).part_bytes["filling"] > 0
    assert not decompress_picture(data).pixels.any()
    container = container_of(*blank((512, 768)), strings=(b"1" * 900, b"2" * 30_000), steps=2000)
    assert len(pack(container)) == 30_900 + 49 + len(container.model)  # a usual Kodak image
    with pytest.raises(SgaError, match="profile has 1048577 bytes"):
        fitted_file(Picture(crop(9, 9).pixels, bytes(2**20 + 1)))


def test_info_tells_the_decoders_work_from_the_file(tmp_path, capsys):
    paths = {}
    for name in ("c3-fast", "c3-paper"):
        paths[name] = tmp_path / f"{name}.csga"
        paths[name].write_bytes(fitted_file(crop(24, 40), model=name))
        assert main(["info", str(paths[name])]) == 0
        text = capsys.readouterr().out
        nets = files.describe_file(paths[name]).nets
        macs = macs_per_pixel(nets.architecture, (24, 40))
        assert nets.size == (24, 40)
        assert f"{macs.total:.1f} multiplications a pixel: entropy net {macs.entropy:.1f}, upsampling" in text
        assert f"upsampling {macs.upsampling:.1f}, synthesis {macs.synthesis:.1f}" in text
        strings = unpack(paths[name].read_bytes()).strings
        assert f"nets {len(strings[0])}, latents {len(strings[1])}, header" in text
        needed = "the zoo's default nets of C3, number 1" if name == "c3-fast" else "none needed"
        assert f"{name}, quality 5 (lmbda 0.001), 6 steps, mse" in text and needed in text
        wanted = ("18-16-16-2", "7-40-3") if name == "c3-fast" else ("24-18-18-2", "7-18-18-3")
        assert all(f"net {widths} (" in text for widths in wanted)
    paths["c3-fast"].write_bytes(fitted_file(crop(8, 8), lmbda=1e-3))
    assert main(["info", str(paths["c3-fast"])]) == 0
    assert "c3-fast, lmbda 0.001, 6 steps, mse" in capsys.readouterr().out
    container = dataclasses.replace(unpack(paths["c3-fast"].read_bytes()), lmbda=None, steps=None)
    paths["c3-fast"].write_bytes(pack(container))  # as files were before
    assert main(["info", str(paths["c3-fast"])]) == 0
    assert "c3-fast, lmbda not noted, mse" in capsys.readouterr().out


OTHER = {"model": zoo.DEFAULT_MODEL, "quality": 3, "steps": None}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"refine": "ssl"}, "refine ssl: c3-fast has no such option for coding; leave it out"),
        ({"coder": "constriction-ans"}, "coder constriction-ans: c3-fast has no such option"),
        ({"metric": "ms-ssim"}, "metric ms-ssim: c3-fast is fitted for mse"),
        ({"quality": 9}, "quality is 9; choose 1 to 8"),
        ({"lmbda": -1.0}, "must be finite and > 0"),
        ({"lmbda": 1e-3, "quality": 3}, "quality 3 and lmbda 0.001 both set the rate of c3-fast; give one"),
        ({"weights": "a"}, "weights a: c3-fast has no such option"),
        ({"steps": 0}, "steps is 0; choose a whole number from 1"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0; it must be > 0"),
        ({**OTHER, "max_seconds": 5.0}, "max_seconds 5.0: mbt2018-mean-small has no such option"),
        ({**OTHER, "checkpoint": "a"}, "checkpoint a: mbt2018-mean-small has no such option"),
    ],
)  # fmt: skip
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        fitted_file(crop(8, 8), **options)


# --- Commands ------------------------------------------------------------------------------------

COMMAND = ["--model", "c3-fast", "--quality", "3", "--steps", "40", "--seed", "2"]


def test_the_three_commands(image, tmp_path, capsys, no_zoo, monkeypatch):
    monkeypatch.setattr(zoo, "list_models", lambda: [])  # which --help names
    target, back = tmp_path / "out.csga", tmp_path / "back.png"
    assert main(["compress", str(image), str(target), *COMMAND]) == 0
    captured = capsys.readouterr()
    assert "fitted with lmbda 0.004, 40 steps\n" in captured.out and not captured.err
    assert (
        f"{target.stat().st_size} bytes" in captured.out
        and "c3-fast, quality 3 (lmbda 0.004), 40 steps" in captured.out
    )
    assert main(["decompress", str(target), str(back)]) == 0
    assert np.array_equal(read_picture(back).pixels, decompress_picture(target.read_bytes()).pixels)
    told = float(captured.out.split(" dB,")[0].split()[-1])
    error = np.square(read_picture(back).pixels.astype(float) - read_picture(image).pixels).mean()
    assert told == pytest.approx(10 * np.log10(255**2 / error), abs=0.006)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.png", "in.png", "out.csga"]
    slow = ["--model", "c3", "--lmbda", "1e-3", "--max-seconds", "3", "--force"]
    assert main(["compress", str(image), str(target), *slow]) == 0
    assert "c3, lmbda 0.001, " in capsys.readouterr().out


def test_a_target_that_cannot_be_written_is_known_before_the_fit(image, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "compress", None)
    assert main(["compress", str(image), str(tmp_path / "none" / "out.csga"), *COMMAND]) == 2
    assert "cannot be written: No such" in capsys.readouterr().err
    (tmp_path / "folder.csga").mkdir()
    assert main(["compress", str(image), str(tmp_path / "folder.csga"), *COMMAND]) == 2
    assert "no ordinary file" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csga", "in.png"]


# What the command line runs, with the fit saved at every step, and an end at a chosen place.
KILLED = """
import os, signal, sys
from compressai_sga.__main__ import main
from compressai_sga.models.c3 import model
from compressai_sga.models.c3.fit import checkpoint
from compressai_sga.models.c3.fit import loop as fit
checkpoint.EVERY_SEC = 0.0
place = sys.argv[1]
step, search = fit.Fit.step, model.round_nets
def counted(self):
    if str(self.step_count) == place:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
def searched(*arguments):
    if place == "search":
        os.kill(os.getpid(), signal.SIGKILL)
    return search(*arguments)
fit.Fit.step, model.round_nets = counted, searched
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def one_thread():
    """As in the processes of `python`: sums in another order are other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def whole(image, one_thread, tmp_path_factory) -> bytes:
    """The file of COMMAND without an interruption."""
    target = tmp_path_factory.mktemp("whole") / "out.csga"
    assert main(["compress", str(image), str(target), *COMMAND]) == 0
    return target.read_bytes()


def test_killed_again_and_again_it_gives_the_same_file(image, tmp_path, whole, capsys, python):
    """Among the steps with noise, among those with rounded latents, after them; always the same command."""
    target = tmp_path / "out.csga"
    target.write_bytes(b"old")
    command = ["compress", str(image), str(target), *COMMAND, "--force"]
    kept = Path(f"{target}.fit")
    for place, steps in (("17", 17), ("38", 38), ("search", 40)):
        killed = python("-W", "ignore", "-c", KILLED, place, *command)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert ("going on from" in killed.stderr) == (steps > 17)
        assert target.read_bytes() == b"old"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.csga", "out.csga.fit"]
        assert torch.load(kept, weights_only=True)["state"]["step_count"] == steps
    assert main(command) == 0
    assert f"going on from {kept}" in capsys.readouterr().err
    assert target.read_bytes() == whole and not kept.exists()


@pytest.mark.parametrize("place", [17, "search"])
def test_an_interrupted_fit_gives_the_same_file(place, image, tmp_path, whole, capsys, monkeypatch):
    """Ctrl-C within a step, which is made to its end, or while weights are rounded."""
    target = tmp_path / "out.csga"
    target.write_bytes(b"old")
    kept = Path(f"{target}.fit")
    step, search = Fit.step, model.round_nets

    def interrupted_step(self):
        if self.step_count == place:
            signal.raise_signal(signal.SIGINT)
        step(self)

    def interrupted_search(fit):
        if place == "search":
            signal.raise_signal(signal.SIGINT)
        return search(fit)

    monkeypatch.setattr(Fit, "step", interrupted_step)
    monkeypatch.setattr(model, "round_nets", interrupted_search)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's job
    try:
        assert main(["compress", str(image), str(target), *COMMAND, "--force"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted; the output is what it was before, the fit so far is in ")
    assert f"{kept}: the same command goes on from there" in last
    assert target.read_bytes() == b"old"
    assert torch.load(kept, weights_only=True)["state"]["step_count"] == (18 if place == 17 else 40)
    assert main(["compress", str(image), str(target), *COMMAND, "--force"]) == 0
    assert target.read_bytes() == whole and not kept.exists()


def test_a_second_interrupt_ends_it_at_once(image, tmp_path, capsys, monkeypatch):
    def twice(self):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Fit, "step", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["compress", str(image), str(tmp_path / "out.csga"), *COMMAND]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "interrupted; the output is what it was before"
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_a_finished_fit_is_not_fitted_again(image, tmp_path, monkeypatch):
    """What is left after a kill during the search: the search alone."""
    target = tmp_path / "out.csga"
    options = {"model": "c3-fast", "steps": 8}

    def stop(fit):
        raise MemoryError

    monkeypatch.setattr(model, "round_nets", stop)
    with pytest.raises(MemoryError):
        files.compress_file(image, target, **options)
    monkeypatch.undo()
    monkeypatch.setattr(Fit, "step", None)
    files.compress_file(image, target, **options)
    assert target.is_file() and not Path(f"{target}.fit").exists()


def test_the_fit_is_kept_until_the_file_is_written(image, tmp_path, monkeypatch):
    target = tmp_path / "out.csga"

    def full(_):
        raise SgaError("no space")

    monkeypatch.setattr(files.codec, "pack", full)
    with pytest.raises(SgaError, match="no space"):
        files.compress_file(image, target, model="c3-fast", steps=4)
    assert Path(f"{target}.fit").is_file() and not target.exists()


def test_a_checkpoint_of_another_fit_is_refused_with_the_cure(image, tmp_path, capsys, monkeypatch):
    target = tmp_path / "out.csga"
    kept = Path(f"{target}.fit")
    step = Fit.step

    def stop(self):
        if self.step_count == 20:
            raise MemoryError
        step(self)

    with monkeypatch.context() as patches:
        patches.setattr(checkpoint, "EVERY_SEC", 0.0)
        patches.setattr(Fit, "step", stop)
        assert main(["compress", str(image), str(target), *COMMAND]) == 2
    assert "needs more memory" in capsys.readouterr().err
    before = kept.read_bytes()
    other = tmp_path / "other.png"
    files.write_picture(other, crop(33, 41))
    for source, more, match in (
        (image, ["--steps", "50"], "steps 40 there, 50 here"),
        (image, ["--seed", "3", "--quality", "5"], "lmbda 0.004 there, 0.001 here, seed 2 there, 3 here"),
        (image, ["--model", "c3"], "preset c3-fast there, c3 here"),
        (image, ["--max-seconds", "9"], "max_seconds None there, 9.0 here"),
        (other, [], "its image is not this one"),
    ):
        assert main(["compress", str(source), str(target), *COMMAND, *more]) == 2
        error = capsys.readouterr().err
        assert match in error and "give the arguments of that fit, or delete it to start again" in error
        assert kept.read_bytes() == before and not target.exists()
    kept.write_bytes(before[:1000])
    assert main(["compress", str(image), str(target), *COMMAND]) == 2
    error = capsys.readouterr().err
    assert f"{kept} is not a checkpoint of a fit" in error and "delete or move it" in error


def test_a_full_disk_costs_the_checkpoint_only(image, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="No space left on device.*: the fit goes on"):
        files.compress_file(image, tmp_path / "out.csga", model="c3-fast", steps=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.csga"]


def test_a_fresh_process_decodes_by_the_file_alone(tmp_path, python):
    """With the C++ decoder, where there is one, and without; at most a level of 255 apart."""
    code = """
import sys
from compressai_sga.models.c3 import native
from compressai_sga import files, zoo
zoo.load = zoo.list_models = None
files.decompress_file(sys.argv[1], sys.argv[2])
native.AVAILABLE = False
files.decompress_file(sys.argv[1], sys.argv[3])
"""
    paths = [tmp_path / name for name in ("a.csga", "native.png", "python.png")]
    paths[0].write_bytes(fitted_file(crop(33, 40), steps=30))
    python("-c", code, *paths, check=True)
    expected = decompress_picture(paths[0].read_bytes()).pixels.astype(int)
    for path in paths[1:]:
        assert np.abs(read_picture(path).pixels - expected).max() <= 1


def test_damaged_fields_are_refused():
    container = unpack(fitted_file(crop(24, 40)))
    for change, match in (
        ({"quality": 9}, "quality 9"),
        ({"weights": b"\1" * 8}, "weights 0101"),
        ({"metric": "ms-ssim"}, "ms-ssim"),
        ({"coder": "constriction-range"}, "constriction-range"),
        ({"stride": 6}, "stride 6"),
        ({"shape": [0]}, "shape"),
        ({"strings": container.strings[:1]}, "1 strings"),
        ({"strings": container.strings[::-1]}, "nets: "),
        ({"width": 41}, "the nets are of 40x24 pixels, the file is of 41x24"),
    ):
        data = pack(dataclasses.replace(container, **change))
        for attempt in (decompress_picture, files.describe):
            with pytest.raises(BitstreamError, match=match):
                attempt(data)
    # Another preset's name would change nothing in decoding, but the checksum covers it.
    for change in ({"checksum": container.checksum ^ 1}, {"symbols": container.symbols + 1}, {"model": "c3"}):
        with pytest.raises(BitstreamError, match="the file is damaged"):
            decompress_picture(pack(dataclasses.replace(container, **change)))
    # The architecture is in the strings: once the checksum agrees, another preset's name changes nothing.
    crc32 = module._checksum(*module._decoded(container))[1]
    renamed = dataclasses.replace(container, model="c3-paper")
    renamed = dataclasses.replace(renamed, checksum=checksum_of(renamed, crc32))
    same = [decompress_picture(pack(named)).pixels for named in (renamed, container)]
    assert np.array_equal(*same)
