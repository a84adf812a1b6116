# SPDX-License-Identifier: Apache-2.0
"""Claims of endings.py, for every command: wrong use and a hostile system end in one sentence."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from urllib.error import URLError

import compressai
import pytest
import torch
from compressai.zoo.image_vbr import model_architectures as vbr_architectures
from PIL import Image

from compressai_sga import zoo
from compressai_sga.__main__ import main
from compressai_sga.endings import brief, refusals
from compressai_sga.errors import SgaError
from compressai_sga.files import kinds
from compressai_sga.models.c3 import ARCHITECTURES as C3_ARCHITECTURES

FAST = ["--refine", "ssl", "--refine-steps", "1", "--refine-lmbda", "0.01"]
REFINE = FAST[:4]
LONG = "n" * 256
HUGE = str(2**70)


@pytest.fixture
def source(images, checkpoint):
    return ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint]


@pytest.fixture
def folder(tmp_path, images):
    """A folder with an image, a file and the broken checkpoint of a fit."""
    shutil.copy(images / "a.png", tmp_path / "a.png")
    (tmp_path / "b.csga.fit").write_bytes(b"garbage")
    return tmp_path


def one_sentence(err: str) -> str:
    """The last line of stderr; everything before it is a progress bar."""
    *others, line = [line for line in err.splitlines() if line.strip()]
    assert not any("Traceback" in other for other in others) and "\x1b" not in err
    assert line.startswith(("error: ", "python -m "))
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*FAST, "-d", "{folder}/a.png"], "a.png is no folder and cannot become one"),
        ([*FAST, "-d", "/proc/sga"], "/proc/sga is no folder and cannot become one"),
        ([*FAST, "-d", f"{{folder}}/{LONG}"], "File name too long"),
        ([*FAST, "-d", "{folder}", "-o", LONG], f"{LONG}.json cannot be written: File name too long"),
        ([*FAST, "-d", "{folder}", "-o", "no/such"], "no/such.json cannot be written: No such file"),
        ([*FAST, "-o", "x"], "-o x is a file in the folder of -d"),
        ([*FAST, "--refine-trace", "/dev/full"], "/dev/full: No space left on device"),
        ([*FAST, "--refine-trace", "/no/x"], "--refine-trace /no/x cannot be written: No such file or direc"),
        ([*FAST, "-p", f"/{LONG}"], f"/{LONG}: File name too long"),
        ([*REFINE, "--refine-lmbda", "1e300"], "lmbda must be above 0 and at most 1e+06, not 1e+300"),
        ([*FAST, "--refine-lr", "1e300"], "learning rate must be above 0 and at most 1e+06"),
        ([*FAST, "--refine-seed", HUGE], f"seed must be a whole number from 0 to {2**63 - 1}, not {HUGE}"),
        (["--refine", "fast", "--refine-preset", "best"], "fast and best are both presets"),
        (["--refine", "magic"], "python -m compressai.utils.eval_model checkpoint: error: "),
    ],
)
def test_evaluation_of_a_checkpoint(refused, source, folder, arguments, expected):
    out, err = refused(*source, *[argument.format(folder=folder) for argument in arguments])
    assert expected in one_sentence(err) and out == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mbt2018-mean-small", "-q", "9"], "no quality 9; there are 1, 2, 3, 4, 5, 6"),
        (["mbt2018-mean-small", "-q", "9", *FAST], "there are 1, 2, 3, 4, 5, 6"),
        (["c3", "-q", "9"], "choose 1 to 8"),
        (["c3", "--seed", HUGE, "--steps", "1"], "0 to 2^63 - 1"),
        (["c3", "--lmbda", "1e300", "--steps", "1"], "lmbda is 1e+300"),
        (["c3", "--half"], "c3 computes in float32"),
        (["diffc-f-small", "--half"], "float32"),
        (["hfd-small", "-q", "1", "--half"], "HFD computes in float32 or bfloat16; leave half precision"),
    ],
)
def test_evaluation_of_our_models(refused, images, arguments, expected):
    _, err = refused("pretrained", images, "-a", *arguments)
    assert expected in one_sentence(err)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compress", "a.png", "x.csga", "--model", "nosuch"], "'nosuch' makes files; there are "),
        (["compress", "a.png", "x.csga", "--refine", "nosuch"], "soft-round-kumaraswamy, sga-paper"),
        (["compress", "a.png", f"{LONG}.csga"], f"{LONG}.csga cannot be written: File name too long"),
        (["compress", "a.png", f"{LONG[:249]}.csga", "--model", "c3"], "File name too long"),
        (["compress", "a.png", "/proc/x.csga"], "/proc/x.csga cannot be written"),
        (["compress", LONG, "x.csga"], "File name too long"),
        (["compress", "a.png", "b.csga", "--model", "c3", "--steps", "1"], "torch.save did not write it"),
        (["compress", "a.png", "x.csga", "--refine", "ssl", "--lmbda", "1e300"], "at most 1e+06, not 1e+300"),
        (["compress", "a.png", "x.csga", "--refine", "ssl", "--seed", HUGE], "seed must be a whole number"),
        (["decompress", "a.png", f"{LONG}.png"], "not a .csga file"),
        (["info", LONG], "cannot be read: File name too long"),
        (["info", "."], "cannot be read: Is a directory"),
        (["compare", "--images", LONG], "File name too long"),
        (["compare", "--out", "a.png"], "--out a.png is no folder and cannot become one (File exists)"),
        (["eval_model", "pretrained", ".", "-a", "mbt2018-mean-small", "-q", "9"], "no quality 9"),
    ],
)
def test_other_commands(folder, capsys, monkeypatch, arguments, expected):
    monkeypatch.chdir(folder)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and expected in one_sentence(capsys.readouterr().err)
    assert not list(folder.glob("*.csga"))


@contextmanager
def full_disk():
    """No file of this process may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_results_outlive_a_full_disk(refused, source, folder, tmp_path):
    out_folder = tmp_path / "out"
    with full_disk():
        out, err = refused(*source, *FAST, "-d", out_folder)
    assert len(json.loads(out)["results"]["bpp"]) == 1
    assert "mbt2018-mean-ans.json cannot be written" in one_sentence(err) and "on stdout" in err
    assert "warning: finished images are not kept" in err
    assert list(out_folder.iterdir()) == []
    with full_disk():
        assert main(["compress", str(folder / "a.png"), str(out_folder / "a.csga")]) == 2
    assert list(out_folder.iterdir()) == []


def test_stdout_that_nobody_reads(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["models"]) == 141
    assert capsys.readouterr().err == ""
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["models"]) == 2
    assert one_sentence(capsys.readouterr().err) == "error: No space left on device"


def test_faults_of_the_program_keep_their_traceback():
    for error in (TypeError("x"), ValueError("of torch"), RuntimeError("x")):
        with pytest.raises(type(error)) as caught, refusals():
            raise error
        assert caught.value is error
    for text in ("can't allocate memory: you tried to allocate 8 bytes", "CUDA out of memory. Tried to ..."):
        with pytest.raises(SgaError, match="more memory"), refusals():
            raise RuntimeError(text)
    with pytest.raises(OSError), refusals(ours_only=True):
        raise OSError("of stock")


def test_messages_of_this_package_are_not_cut():
    cure = "leave it out; " * 40
    assert brief(SgaError(cure)) == cure
    with pytest.raises(ValueError) as caught:
        zoo.load("nosuch")
    assert brief(caught.value) == str(caught.value)
    text = brief(RuntimeError("\x1b[1mbold\x1b[0m " + 60 * "words "))
    assert text.startswith("RuntimeError: bold words") and text.endswith("words ...") and len(text) < 220


def test_a_failed_download_names_all_models_that_need_none(refused, images, monkeypatch):
    def offline(url, **keywords):
        raise URLError("no route")

    advice = zoo.with_download_advice(offline)
    monkeypatch.setattr(compressai.zoo.image, "load_state_dict_from_url", advice)
    for options in ([], FAST):
        _, err = refused("pretrained", images, "-a", "mbt2018-mean", *options)
        assert "no route" in err and one_sentence(err).endswith("rda-l2-small (quality 1, 3)")


def test_checkpoints_of_data_parallel(evaluate, eval_model, source, tmp_path, checkpoint, capsys):
    expected = evaluate(*source, *FAST)["results"]["loss"]
    path = tmp_path / "parallel.pth.tar"
    state = torch.load(checkpoint)["state_dict"]
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    eval_model.main([str(argument) for argument in (*source[:-1], path, *FAST)])
    out, err = capsys.readouterr()
    assert json.loads(out)["results"]["loss"] == expected
    assert f"note: the names in {path} begin with 'module.'" in err


def test_checkpoints_get_the_truth(refused, source, tmp_path, checkpoint):
    path = tmp_path / "x.pth.tar"
    state = torch.load(checkpoint)["state_dict"]
    vbr = vbr_architectures["mbt2018-mean-vbr"](16, 24, vr_entbttlnck=True).state_dict()
    parallel = {f"module.{name}": value for name, value in vbr.items()}
    for content, expected in (
        ({"state_dict": {"x.weight": torch.zeros(3)}}, "; it fits no architecture"),
        ({"state_dict": vbr}, "; it loads with -a mbt2018-mean-vbr"),
        ({"state_dict": parallel}, "; it loads with -a mbt2018-mean-vbr"),
        ({"state_dict": state, "args": argparse.Namespace()}, "it holds an object of argparse.Namespace"),
    ):
        torch.save(content, path)
        _, err = refused(*source[:-1], path, *FAST)
        assert expected in one_sentence(err) and "c3" not in one_sentence(err)
    path.write_bytes(b"garbage")
    _, err = refused(*source[:-1], path, *FAST)
    assert "(torch.save did not write it" in err or ": torch.save did not write it" in err
    for name, cls in C3_ARCHITECTURES.items():
        with pytest.raises(ValueError, match=f"{name} is fitted to each image and has no weights"):
            cls.from_state_dict(state)


def test_weights_that_are_not_installed(refused, images, tmp_path, monkeypatch, capsys):
    shutil.copy(zoo._folder() / "manifest.json", tmp_path)
    record = zoo.list_models("rda-l2-small")[0]
    monkeypatch.setattr(zoo, "_folder", lambda: tmp_path)
    monkeypatch.setattr(kinds, "folder", lambda: tmp_path)
    for options in ([], ["--metrics", "swd"]):
        _, err = refused("pretrained", images, "-a", record.name, "-q", record.quality, *options)
        assert f"Copy zoo/{record.file} from the repository" in one_sentence(err)
        assert str(tmp_path / record.file) in err
    command = ["compress", str(images / "a.png"), str(tmp_path / "x.csga"), "--model"]
    assert main([*command, record.name]) == 2
    assert "Copy zoo/weights/rda-l2-small-3.safetensors" in one_sentence(capsys.readouterr().err)
    assert main([*command, "nosuch"]) == 2
    assert one_sentence(capsys.readouterr().err).endswith("there are c3, c3-fast, c3-paper")
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert "rda-l2-small" not in capsys.readouterr().out


def test_images_that_are_left_out_or_overwritten(eval_model, source, images, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(images / "a.png", folder / "a.png")
    shutil.copy(images / "a.png", folder / "b.PNG")
    with Image.open(images / "a.png") as image:
        image.save(folder / "a.jpg")
    arguments = ["checkpoint", folder, *source[2:], "--metrics", "swd", "-d", tmp_path / "out", "--per-image"]
    eval_model.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert "small letters; 1 images are left out (b.PNG)" in err
    assert "--per-image keeps the results of one of a.jpg, a.png only" in err


def test_programs_call_themselves_by_their_command(python):
    done = python("-m", "compressai_sga", "eval_model", "--refine", "magic")
    assert done.returncode == 2 and "__main__" not in done.stderr
    assert "python -m compressai_sga eval_model pretrained: error: " in done.stderr
