# SPDX-License-Identifier: Apache-2.0
"""Interrupted evaluations keep what is finished; the same command continues."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from torch import nn

from compressai_sga.journal import Journal, cache_folder, weights_sha256

TIMES = ("encoding_time", "decoding_time")
STEPS = 60  # an image
# eval_model as from the command line, which gets a signal as soon as one image is in the journal.
KILLED_AFTER_ONE = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run as a shell's job
from compressai_sga.journal import Journal
add, kind = Journal.add, int(sys.argv.pop(1))
def add_and_die(self, *arguments):
    add(self, *arguments)
    os.kill(os.getpid(), kind)
Journal.add = add_and_die
runpy.run_module("compressai.utils.eval_model", run_name="__main__", alter_sys=True)
"""


def test_records_survive_and_changed_images_do_not(tmp_path):
    image, other = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes(b"12345")
    other.write_bytes(b"12345")
    results = {"psnr-rgb": 31.1, "bpp": 1 / 3, "loss": float("inf")}
    journal = Journal(tmp_path / "new" / "folder", {"seed": 0})
    journal.add(image, {"results": results})
    assert json.loads(journal.path.read_text().splitlines()[0]) == {"run": {"seed": 0}}

    again = Journal(tmp_path / "new" / "folder", {"seed": 0})  # the first was killed, not closed
    assert again.path == journal.path
    assert again.find(image) == {"results": results}
    assert again.find(other) is None and again.find(tmp_path / "missing.png") is None
    os.utime(image, ns=(1, 1))
    assert again.find(image) is None
    assert Journal(tmp_path / "new" / "folder", {"seed": 1}).path != journal.path
    again.remove()
    assert not journal.path.exists()


def test_a_torn_line_costs_one_image_only(tmp_path):
    images = [tmp_path / name for name in "abc"]
    for image in images:
        image.write_bytes(b"")
    journal = Journal(tmp_path / "j", {})
    journal.add(images[0], {"n": 0})
    journal.add(images[1], {"n": 1})
    journal.path.write_bytes(journal.path.read_bytes()[:-9])
    again = Journal(tmp_path / "j", {})
    again.add(images[2], {"n": 2})
    again.close()
    journal.path.write_bytes(journal.path.read_bytes() + b'{"image": 1}\n[]\n\xff\n')
    last = Journal(tmp_path / "j", {})
    assert [last.find(image) for image in images] == [{"n": 0}, None, {"n": 2}]


def test_a_journal_without_an_image_leaves_no_file(tmp_path):
    journal = Journal(tmp_path, {})
    journal.close()
    assert not list(tmp_path.iterdir())


def test_the_weights_hash_sees_every_bit():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    before = weights_sha256(net)
    assert weights_sha256(net) == before
    net[1].num_batches_tracked += 1
    assert weights_sha256(net) != before


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "compressai-sga"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "compressai-sga"


def _arguments(images, checkpoint, *more):
    options = ["--refine", "ssl", "--refine-steps", STEPS]  # lmbda: estimated from the first image
    return ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, *options, *more]


def _numbers(out):
    return {key: value for key, value in out["results"].items() if not key.startswith(TIMES)}


@pytest.mark.parametrize("kind", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_killed_run_continues(kind, python, evaluate, images, checkpoint, tmp_path):
    folder = tmp_path / "out" if kind == signal.SIGKILL else tmp_path / "cache" / "compressai-sga"
    more = ["-d", folder, "--per-image"] if kind == signal.SIGKILL else []
    more += ["--refine-trace", tmp_path / "trace.jsonl"]
    arguments = list(map(str, _arguments(images, checkpoint, *more)))
    process = python("-c", KILLED_AFTER_ONE, int(kind), *arguments)
    assert process.stdout == ""
    (file,) = folder.glob("compressai-sga-*.jsonl")
    assert file.read_bytes().count(b'{"image"') == 1
    if kind == signal.SIGINT:
        assert process.returncode == 130
        last = process.stderr.strip().splitlines()[-1]
        assert last.startswith("interrupted: 1 finished image kept")
        assert str(folder) in last and "same command continues" in last
        assert "Traceback" not in process.stderr
    else:
        assert process.returncode == -signal.SIGKILL

    # Known images are not computed again: mark one, and look for the mark in the result.
    lines = file.read_text().splitlines()
    entry = json.loads(lines[1])
    entry["record"]["results"]["decoding_time"] = 3000.0
    file.write_text("\n".join([lines[0], json.dumps(entry), *lines[2:]]) + "\n")
    continued = evaluate(*arguments)
    assert continued["results"]["decoding_time"][0] > 1000
    assert not list(folder.glob("compressai-sga-*.jsonl"))
    trace = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in trace] == [
        f"{name}.png" for name in "abc" for _ in range(STEPS)
    ]
    if kind == signal.SIGKILL:
        one = json.loads((folder / "a-small-ans.json").read_text())
        assert one["results"]["decoding_time"] == 3000.0

    whole = evaluate(*arguments)
    assert whole["results"]["decoding_time"][0] < 1000
    assert _numbers(continued) == _numbers(whole)
    assert continued["refine"] == whole["refine"]


def test_a_folder_that_cannot_be_written_costs_the_journal_only(
    evaluate, images, checkpoint, monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    out = evaluate(*_arguments(images, checkpoint, "--refine-steps", 1))
    assert len(out["results"]["bpp"]) == 1
