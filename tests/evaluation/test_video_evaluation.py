# SPDX-License-Identifier: Apache-2.0
"""The refined evaluation of video gives stock's JSON with better numbers, from files that stock decodes."""

from __future__ import annotations

import contextlib
import importlib
import json

import compressai
import numpy as np
import pytest
import torch

import compressai_sga
from compressai_sga.evaluation import video
from compressai_sga.refine import refined_frames
from tests.small_models import clip, video_model

STOCK_KEYS = [
    *("psnr-y", "psnr-u", "psnr-v", "psnr-yuv"),
    *("ms-ssim-rgb", "mse-rgb", "psnr-rgb", "bitrate"),
]
SIDES = (162, 176)
NAME = f"moving_{SIDES[1]}x{SIDES[0]}_30fps_8bit_P420"
FAST = ["--refine", "ssl", "--refine-steps", "3", "--refine-lr", "0.05", "--refine-lmbda", "0.05"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with a clip of two frames."""
    stock = importlib.import_module("compressai.utils.video.eval_model.__main__")
    folder = tmp_path_factory.mktemp("clips")
    with open(folder / f"{NAME}.yuv", "wb") as file:
        for x in clip(*SIDES, frames=2):
            for plane in stock.convert_rgb_to_yuv420(x):
                file.write((plane * 255).round().clamp(0, 255).byte().numpy().tobytes())
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pth.tar"
    torch.save({"state_dict": video_model().state_dict()}, path)
    return path


@pytest.fixture
def stock():
    compressai_sga.hooks.enable()
    yield importlib.import_module("compressai.utils.video.eval_model.__main__")
    compressai.set_entropy_coder("ans")


@pytest.fixture
def evaluate(stock, clips, weights, tmp_path, capsys):
    """Run the command in this process, by default on the clip; gives the JSON."""

    def run(*options, folder=tmp_path / "out", dataset=clips):
        capsys.readouterr()
        arguments = ("checkpoint", dataset, "unused", "-a", "ssf2020-small", "-p", weights, "-d", folder)
        stock.main([str(argument) for argument in (*arguments, *options)])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(evaluate, capsys):
    """Run a command that must end with exit code 2; gives its last line on stderr."""

    def run(*options, **keywords):
        with pytest.raises(SystemExit) as stop:
            evaluate(*options, **keywords)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in err
        return err.splitlines()[-1]

    return run


def read_file(stock, path):
    """(strings, shape) of each frame of stock's file."""
    with open(path, "rb") as file:
        assert stock.read_uints(file, 2) == SIDES
        assert stock.read_uchars(file, 1) == (8,)
        (count,) = stock.read_uints(file, 1)
        strings, shape = stock.read_body(file)
        frames = [(strings, shape)]
        for _ in range(count - 1):
            (motion, shape_m), (residual, shape_r) = stock.read_body(file), stock.read_body(file)
            frames.append(
                ({"motion": motion, "residual": residual}, {"motion": shape_m, "residual": shape_r})
            )
        assert file.read() == b""
    return frames


def test_results_are_stocks_with_refined_numbers_that_its_decoder_gives(
    evaluate, stock, clips, weights, tmp_path
):
    folder, trace = tmp_path / "out", tmp_path / "trace.jsonl"
    out = evaluate(*FAST, "--keep_binaries", "--refine-trace", trace)
    results = out["results"]
    extra = {"loss", "loss-unrefined", *(key + "-unrefined" for key in STOCK_KEYS)}
    assert list(results)[:9] == ["q", *STOCK_KEYS] and set(results) == {"q", *STOCK_KEYS, *extra}
    assert results["loss"][0] < results["loss-unrefined"][0]
    assert json.loads((folder / "ssf2020-small-ans.json").read_text()) == out
    expected = {"method": "ssl", "preset": "ssl", "steps": 3, "lmbda": 0.05, "lr": 0.05, "seed": 0}
    assert out["refine"] == expected
    (of_clip,) = folder.glob(f"{NAME}-small-ans-refined-*.json")
    of_clip = json.loads(of_clip.read_text())
    assert of_clip["source"] == NAME and of_clip["refine"] == expected
    assert {key: [value] for key, value in of_clip["results"].items()} == {
        key: value for key, value in results.items() if key != "q"
    }

    (file,) = folder.glob(f"{NAME}-*.bin")
    net = stock.load_checkpoint("ssf2020-small", False, str(weights))
    clip_ = compressai.datasets.RawVideoSequence.from_file(str(clips / f"{NAME}.yuv"))
    pad = stock.pad(torch.zeros(1, 3, *SIDES))[1]
    decoded, sums = None, []
    with torch.no_grad():
        for frame, (strings, shape) in zip(clip_, read_file(stock, file), strict=True):
            decoded = (
                net.decode_keyframe(strings, shape)
                if decoded is None
                else net.decode_inter(decoded, strings, shape)
            )
            decoded = decoded.clamp(0, 1)
            sums.append(stock.compute_metrics_for_frame(frame, stock.crop(decoded, pad)))
    for key in STOCK_KEYS[:-1]:
        assert results[key][0] == pytest.approx(np.mean([float(one[key]) for one in sums]), rel=1e-5)
    assert results["bitrate"][0] == pytest.approx(file.stat().st_size * 8 * 30 / (2 * 1000))
    bpp = results["bitrate"][0] * 1000 / (30 * SIDES[0] * SIDES[1])
    assert results["loss"][0] == pytest.approx(bpp + 0.05 * results["mse-rgb"][0])

    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [(line["image"], line["step"]) for line in lines] == [
        (f"{NAME}, frame {frame}", step) for frame in range(2) for step in range(3)
    ]
    # The options and the padding have arrived: the context alone gives the same bytes.
    frames = [stock.pad(stock.convert_yuv420_to_rgb(x, torch.device("cpu"), 255))[0] for x in clip_]
    with refined_frames(net, "ssl", pad=pad, steps=3, lr=0.05, lmbda=0.05) as same:
        x_hat, _ = net.encode_keyframe(frames[0])
        net.encode_inter(frames[1], x_hat.clamp(0, 1))
    assert [r.strings for r in same] == [strings for strings, _ in read_file(stock, file)]


@pytest.mark.parametrize("estimation", [[], ["--entropy-estimation"]])
def test_unrefined_numbers_are_stocks(evaluate, estimation, tmp_path):
    plain = evaluate(*estimation, folder=tmp_path / "plain")
    assert list(plain["results"]) == ["q", *STOCK_KEYS] and "refine" not in plain
    ours = evaluate(*estimation, *FAST)["results"]
    for key in STOCK_KEYS:
        assert ours[f"{key}-unrefined"] == plain["results"][key]
    assert ours["loss"][0] < ours["loss-unrefined"][0]


def test_the_coder_of_c_codes(evaluate, tmp_path):
    options = ["--keep_binaries", "-f"]
    evaluate(*options, "-c", "constriction-ans")
    evaluate(*options)
    one, two = (next((tmp_path / "out").glob(f"*-small-{name}.bin")) for name in ("constriction-ans", "ans"))
    assert one.read_bytes() != two.read_bytes()


def test_a_clip_is_done_once_for_its_settings(evaluate, tmp_path, monkeypatch, capsys):
    first = evaluate(*FAST)
    with monkeypatch.context() as patch:
        patch.setattr(video, "refined_frames", None)  # whoever refines now fails
        assert evaluate(*FAST) == first
        with pytest.raises(TypeError):
            evaluate(*FAST, "-c", "constriction-ans")
        with pytest.raises(TypeError):
            evaluate(*FAST, "--refine-seed", "1")
    assert "refine" not in evaluate()  # nor does stock take the refined numbers for its own
    (path,) = (tmp_path / "out").glob(f"{NAME}-*-refined-*.json")
    path.write_text(path.read_text()[:-30])
    assert evaluate(*FAST) == first

    @contextlib.contextmanager
    def interrupted(*args, **keywords):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(video, "refined_frames", interrupted)
    with pytest.raises(SystemExit) as stop:
        evaluate(*FAST, "--refine-seed", "1")
    assert stop.value.code == 130
    assert "0 finished clips kept" in capsys.readouterr().err


def test_an_estimated_trade_off_is_that_of_the_clips_before(evaluate, clips, tmp_path, monkeypatch):
    """Also where an interrupted command has estimated it."""
    loop = importlib.import_module("compressai_sga.refine.loop")
    folder = tmp_path / "clips"
    folder.mkdir()
    options = ["--refine", "ssl", "--refine-steps", "1"]
    for number, estimate in enumerate((0.0483, 0.0130)):
        monkeypatch.setattr(loop, "estimate_lmbda", lambda *_, value=estimate: value)
        (folder / f"{number}-{NAME}.yuv").write_bytes((clips / f"{NAME}.yuv").read_bytes())
        assert evaluate(*options, dataset=folder)["refine"]["lmbda"] == 0.0483


def test_each_run_has_its_trade_off(evaluate, weights, tmp_path, monkeypatch):
    loop = importlib.import_module("compressai_sga.refine.loop")
    other = video_model()
    other.img_decoder[-1].bias.data.add_(0.1)
    torch.save(other.state_dict(), tmp_path / "other.pth.tar")
    estimates = iter((0.0483, 0.0130))
    monkeypatch.setattr(loop, "estimate_lmbda", lambda *_: next(estimates))
    options = ["--refine", "ssl", "--refine-steps", "1", "-p", weights, tmp_path / "other.pth.tar"]
    out = evaluate(*options)
    assert out["refine"]["lmbda"] == [0.0483, 0.0130] and len(out["results"]["loss"]) == 2
    assert evaluate(*options) == out  # from the files of the clips


def test_wrong_use_is_one_sentence(refused, clips, tmp_path, weights):
    for options, words in (
        (["--half"], "--half and --refine exclude"),
        (["-m", "ms-ssim", "-d", ""], "-d is missing"),
        (["--refine-trace", tmp_path / "no" / "trace"], "cannot be written"),
        (["-p", tmp_path / "missing.pth"], "missing.pth does not exist"),
        (["-a", "ssf2020"], "is not a checkpoint of ssf2020"),
        (["--no-update", "-a", "ssf2020"], "is not a checkpoint"),
        (["--refine-steps", "-1"], "at least 0"),
    ):
        assert words in refused(*FAST, *options), options
    assert "--refine-lmbda 0.013" in refused("--refine", "ssl", "--refine-steps", "1")  # not trained


def test_clips_that_cannot_be_read_are_named_before_any_work(refused, tmp_path):
    frame = 176 * 162 * 3 // 2
    for number, (name, size, words) in enumerate(
        (
            ("a_176x162_30f.yuv", frame, "format (P420)"),
            ("a_176x162_P420.yuv", frame, "frames a second (30fps)"),
            ("a_30fps_P420.yuv", frame, "does not tell the size"),
            ("a_176x162_30fps_P420.yuv", frame * 3 // 2, "whole number of the frames"),
            ("a_88x162_30fps_P420.yuv", frame // 2, "at least 161"),
            ("a_175x163_30fps_P420.yuv", 175 * 163 + 2 * 88 * 82, "even sides"),
            ("a_176x162_30fps_yuv444.yuv", 176 * 162 * 3, "4:2:0 only"),
            ("a.y4m", frame, "holds no *.yuv"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(bytes(size))
        line = refused(*FAST, dataset=folder)
        assert words in line and str(folder) in line, name
    assert "is no folder" in refused(*FAST, dataset=tmp_path / "missing")


def test_pretrained_without_weights_names_the_recipe(stock, clips, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        arguments = ["pretrained", clips, "unused", "-a", "ssf2020-small", "-d", tmp_path, *FAST]
        stock.main([str(argument) for argument in arguments])
    assert stop.value.code == 2 and "zoo/train/video.py" in capsys.readouterr().err


def test_the_stock_command_refines_and_shows_the_options(python, clips, weights, tmp_path):
    shown = python("-m", "compressai.utils.video.eval_model", "checkpoint", "--help", check=True).stdout
    assert all(option in shown for option in video_options()) and "--metrics" not in shown
    done = python(
        *("-m", "compressai.utils.video.eval_model", "checkpoint", clips, "unused", "-a", "ssf2020-small"),
        *("-p", weights, "-d", tmp_path / "out", *FAST),
        check=True,
    )
    assert json.loads(done.stdout)["refine"]["steps"] == 3
    assert "frame 1 (2 of 2)" in done.stderr


def video_options():
    return [f"--refine{part} " for part in ("", "-preset", "-steps", "-lmbda", "-lr", "-seed", "-trace")]
