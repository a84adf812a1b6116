# SPDX-License-Identifier: Apache-2.0
"""The small scale-space flow model is stock's in all but its widths, and stock's command knows its name."""

from __future__ import annotations

import importlib

import compressai
import pytest
import torch
from compressai.models.video.google import ScaleSpaceFlow
from compressai.registry import MODELS

import compressai_sga
from compressai_sga.errors import SgaError
from compressai_sga.models.ssf import SmallScaleSpaceFlow


def test_at_stocks_widths_its_state_is_stocks():
    with torch.device("meta"):
        stock = ScaleSpaceFlow()
        ours = SmallScaleSpaceFlow(128, 192)
    shapes = [{name: v.shape for name, v in net.state_dict().items()} for net in (stock, ours)]
    assert shapes[0] == shapes[1]
    assert ours.compress.__func__ is stock.compress.__func__


def test_weights_of_other_widths_are_loaded():
    torch.manual_seed(0)
    net = SmallScaleSpaceFlow(8, 12, num_levels=3).eval()
    net.update(force=True)
    other = SmallScaleSpaceFlow(num_levels=3).eval()
    other.load_state_dict(net.state_dict())
    frames = list(torch.rand(2, 1, 3, 128, 128).unbind())
    with torch.no_grad():
        strings, shapes = net.compress(frames)
        decoded = other.decompress(strings, shapes)
        assert torch.equal(decoded[1], net.decompress(strings, shapes)[1])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_it_is_registered_as_a_model_for_video():
    compressai_sga.hooks.enable()
    command = importlib.import_module("compressai.utils.video.eval_model.__main__")
    assert command.models["ssf2020-small"] is MODELS["ssf2020-small"] is SmallScaleSpaceFlow
    assert command.pretrained_models is compressai.zoo.video_models
    assert "ssf2020-small" not in compressai.zoo.image_models
    make = compressai.zoo.video_models["ssf2020-small"]
    assert type(make(quality=1, N=8, M=8)) is SmallScaleSpaceFlow
    with pytest.raises(SgaError, match="no published weights"):
        make(quality=1, pretrained=True)
