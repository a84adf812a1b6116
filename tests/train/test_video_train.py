# SPDX-License-Identifier: Apache-2.0
"""The recipe of the small video model reads clips of both kinds, lowers its loss and goes on from weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from compressai_sga.models.ssf import SmallScaleSpaceFlow


@pytest.fixture
def planes():
    """Y, U and V of three frames of 130x128, each frame another grey."""
    y = np.full((3, 128, 130), [[[40]], [[90]], [[140]]], np.uint8)
    return y, np.full((3, 64, 65), 128, np.uint8), np.full((3, 64, 65), 127, np.uint8)


def frames(planes):
    return [b"".join(plane[t].tobytes() for plane in planes) for t in range(3)]


def test_both_kinds_of_clips_are_read(planes, tmp_path):
    from video import draw, read_clip

    (tmp_path / "a_130x128_3f.yuv").write_bytes(b"".join(frames(planes)))
    head = b"YUV4MPEG2 W130 H128 F30:1 Ip A1:1 C420mpeg2\n"
    (tmp_path / "b.y4m").write_bytes(head + b"".join(b"FRAME\n" + frame for frame in frames(planes)))
    for path in sorted(tmp_path.iterdir()):
        for found, expected in zip(read_clip(path), planes, strict=True):
            assert np.array_equal(found, expected)
    drawn = draw([planes], np.random.default_rng(0))
    assert [x.shape for x in drawn] == [(1, 3, 128, 128)] * 3
    greys = sorted(round(255 * x.mean().item()) for x in drawn)
    assert greys[1] - greys[0] == pytest.approx(50, abs=2)


def test_other_clips_are_refused(planes, tmp_path):
    from video import read_clip

    for name, data in (
        ("size.yuv", b"".join(frames(planes))),
        ("short_130x128.yuv", frames(planes)[0]),
        ("narrow_126x128.yuv", b"".join(frames(planes))),
        ("c.y4m", b"YUV4MPEG2 W130 H128 F30:1 C444\nFRAME\n"),
        ("d.y4m", b"YUV4MPEG2 W130 H128 F30:1 C420p10\nFRAME\n"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SystemExit, match=name):
            read_clip(tmp_path / name)


def test_the_loss_falls_and_the_command_reads_the_checkpoint(planes, tmp_path, monkeypatch):
    import video

    clip, out = tmp_path / "a_130x128_3f.yuv", tmp_path / "runs" / "a.pth.tar"
    clip.write_bytes(b"".join(frames(planes)))
    seen = []
    loss_of = video.loss_of
    monkeypatch.setattr(video, "loss_of", lambda *args: seen.append(loss_of(*args)) or seen[-1])
    seconds = itertools.count()
    monkeypatch.setattr(video.time, "process_time", lambda: float(next(seconds)))  # one a step
    options = [str(clip), "--out", str(out), "--N", "8", "--M", "8", "--lr", "0.01"]
    video.main([*options, "--max-minutes", "0.5"])
    mean = sum(losses[0].item() for losses in seen[-5:]) / 5
    assert len(seen) == 29 and mean < 0.7 * seen[0][0]
    net = SmallScaleSpaceFlow()
    net.load_state_dict(torch.load(out)["state_dict"])
    video.main([*options, "--init", str(out), "--max-minutes", "0.03"])
    assert len(seen) == 30 and seen[29][0] < 0.7 * seen[0][0]
