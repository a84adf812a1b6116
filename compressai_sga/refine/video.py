# SPDX-License-Identifier: Apache-2.0
"""Refinement of video, frame after frame, for scale-space flow models such as CompressAI's `ssf2020`.

    results = refine_frames(model, frames, "ssl", lmbda=0.013)
    decoded = decode_frames(model, [r.strings for r in results], [r.shape for r in results])

The latents of a frame are refined given its reference, the decoder's image of the frame before, which is
refined already. For an inter frame these are all latents of motion and residual together. A frame's choice
changes the reference of the next one, but no string that is written. So frames are refined in order, and each
is the result of the loop for images (`loop`, `frames`): rate and distortion of the real strings, and never a
higher loss than the unrefined strings of this frame have with the same reference.

References are clamped to [0, 1], as in CompressAI's command `compressai.utils.video.eval_model` and its
example codec. The model's own `decompress` does not clamp, and decodes such strings to other images.

In:  frames (B, 3, H, W). Out: a `RefineResult` for each, with the strings of stock's encoder.
Fails with ``UnsupportedModelError``, ``ShapeError``, ``InputError``, ``ValueError``, as for images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from compressai.ops import compute_padding
from torch import Tensor, nn

from ..errors import ShapeError
from ..inputs import check_images
from ..lmbda import set_trained_lmbda, trained_lmbda
from ..precision import full_float32, full_precision
from .frames import InterFrame, KeyFrame, by_part, check_video_model
from .loop import Padding, RefineResult, refine

__all__ = ["FRAME_STRIDE", "decode_frames", "refine_frames", "refined_frames"]

FRAME_STRIDE = 128
"""The sides of a coded frame are multiples of this, px: four strides of y, then three of z."""


def refine_frames(
    model: nn.Module, frames: Sequence[Tensor], method: str | None = None, **options: Any
) -> list[RefineResult]:
    """Refine and code a video: the first frame as a key frame, each other given the one before.

    Args:
        model: a scale-space flow model (CompressAI's `ScaleSpaceFlow`), float32, in evaluation mode, tables
            updated. It is not changed.
        frames: in [0, 1], each of shape (B, 3, H, W), on the model's device. Where their sides are no
            multiples of 128 they are padded, as CompressAI's command does.
        method, options: as in `refine`: preset, steps (of each frame), lmbda, lr, seed, metric, config,
            on_step. `lmbda` None takes the value that the model was trained with
            (`set_trained_lmbda`), or an estimate from the key frame, which is noted on the model.

    Returns:
        For each frame a `RefineResult`. `strings` and `shape` are in the form of stock's encode_keyframe
        and encode_inter; `x_hat` has no padding; `before` is the unrefined frame with the same reference.

    Raises:
        UnsupportedModelError, ShapeError, InputError, ValueError: as `refine`.
    """
    shapes = {tuple(x.shape) for x in frames if isinstance(x, Tensor)}
    if len(shapes) > 1:
        raise ShapeError(f"all frames must have one shape (B, 3, H, W), not {', '.join(map(str, shapes))}")
    for x in frames:
        check_images(x)
    if not len(frames):
        return []
    pad, _ = compute_padding(*frames[0].shape[2:], min_div=FRAME_STRIDE)
    with refined_frames(model, method, pad=pad, **options) as results:
        x_hat, _ = model.encode_keyframe(F.pad(frames[0], pad))
        for x in frames[1:]:
            x_hat, _ = model.encode_inter(F.pad(x, pad), x_hat.clamp(0, 1))
    return results


@torch.no_grad()
@full_precision()
def decode_frames(model: nn.Module, strings: Sequence[Any], shapes: Sequence[Any]) -> list[Tensor]:
    """The frames that stock's decoder makes of the strings, with the clamped references of the encoder.

    Args:
        model: as in `refine_frames`.
        strings, shapes: of each frame, the first that of a key frame.

    Returns:
        For each frame the image (B, 3, H, W) in [0, 1], with its padding.
    """
    decoded: list[Tensor] = []
    with full_float32():
        for coded, shape in zip(strings, shapes, strict=True):
            x_hat = (
                model.decode_inter(decoded[-1], coded, shape)
                if decoded
                else model.decode_keyframe(coded, shape)
            )
            decoded.append(x_hat.clamp(0, 1))
    return decoded


@contextmanager
def refined_frames(
    model: nn.Module, method: str | None = None, *, pad: Padding | None = None, **options: Any
) -> Iterator[list[RefineResult]]:
    """A context in which the encoders of a video model refine each frame before they code it.

    These are encode_keyframe and encode_inter, and forward_keyframe and forward_inter, whose likelihoods are
    those of the refined symbols. The image that they return is the decoder's, not clamped, as stock's is.

    Args:
        model: as in `refine_frames`; gets its own methods back at the end.
        method, options: as in `refine_frames`.
        pad: (left, right, top, bottom) padding that the frames carry.

    Yields:
        A list to which the `RefineResult` of every frame is appended.
    """
    check_video_model(model)
    results: list[RefineResult] = []

    def coded(frame: KeyFrame | InterFrame) -> tuple[Tensor, RefineResult]:
        _check_stride(frame.frame)
        with _methods(model, dict.fromkeys(ours)), torch.no_grad(), full_float32():
            result = _refine(model, frame, method, pad, options)
            x_hat = frame.decoded(result.strings, result.shape)
        if isinstance(frame, InterFrame):
            result = dataclasses.replace(result, strings=by_part(result.strings))
        results.append(result)
        return x_hat, result

    def encode_keyframe(x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x_hat, result = coded(KeyFrame(model, x))
        return x_hat, {"strings": result.strings, "shape": result.shape}

    def encode_inter(x_cur: Tensor, x_ref: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x_hat, result = coded(InterFrame(model, x_cur, x_ref))
        return x_hat, {"strings": result.strings, "shape": result.shape}

    def forward_keyframe(x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x_hat, result = coded(KeyFrame(model, x))
        return x_hat, {"keyframe": result.likelihoods}

    def forward_inter(x_cur: Tensor, x_ref: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x_hat, result = coded(InterFrame(model, x_cur, x_ref))
        p = result.likelihoods
        return x_hat, {
            "motion": {"y": p["y_motion"], "z": p["z_motion"]},
            "residual": {"y": p["y"], "z": p["z"]},
        }

    encoders = (encode_keyframe, encode_inter, forward_keyframe, forward_inter)
    ours = {each.__name__: each for each in encoders}
    with _methods(model, ours):
        yield results


def _check_stride(frame: Tensor) -> None:
    if frame.shape[2] % FRAME_STRIDE or frame.shape[3] % FRAME_STRIDE:
        raise ShapeError(
            f"the encoders take frames padded to multiples of {FRAME_STRIDE}, not {tuple(frame.shape)}; pad "
            "as compressai.ops.compute_padding says and name it with pad=, or call refine_frames"
        )


def _refine(
    model: nn.Module,
    frame: KeyFrame | InterFrame,
    method: str | None,
    pad: Padding | None,
    options: dict[str, Any],
) -> RefineResult:
    """`refine` with the trade-off of the model, or that of its first key frame."""
    config = options.get("config")
    metric = options.get("metric", "mse") if config is None else config.metric
    given = options.get("lmbda") if config is None else config.lmbda
    known = trained_lmbda(model, metric)
    if given is None and known is None and isinstance(frame, InterFrame):
        raise ValueError("lmbda is not known, and is estimated from key frames only; give lmbda=0.013")
    if known is not None:
        set_trained_lmbda(frame, known, metric)
    result = refine(frame, frame.frame.clamp(0, 1), method, pad=pad, **options)
    if given is None:
        set_trained_lmbda(model, result.lmbda, metric)
    return result


@contextmanager
def _methods(model: nn.Module, methods: dict[str, Callable[..., Any] | None]) -> Iterator[None]:
    """A context in which the model has these attributes of its own; None: that of its class."""
    before = {name: vars(model).get(name) for name in methods}

    def put(values: dict[str, Callable[..., Any] | None]) -> None:
        for name, value in values.items():
            if value is not None:
                setattr(model, name, value)
            elif name in vars(model):
                delattr(model, name)

    put(methods)
    try:
        yield
    finally:
        put(before)
