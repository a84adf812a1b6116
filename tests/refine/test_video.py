# SPDX-License-Identifier: Apache-2.0
"""Refinement of video: stock's decoder makes the frames that were measured, with its own references."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from compressai.models.video.google import ScaleSpaceFlow
from compressai.ops import compute_padding

from compressai_sga.errors import InputError, ShapeError, UnsupportedModelError
from compressai_sga.refine import (
    RefineConfig,
    decode_frames,
    refine,
    refine_frames,
    refined_frames,
    set_trained_lmbda,
    trained_lmbda,
)
from compressai_sga.refine.frames import InterFrame, KeyFrame, check_video_model
from compressai_sga.refine.latents import hard_rounding
from compressai_sga.refine.loop import build_adapter
from tests.small_models import build, clip, video_model

LMBDA = 0.05
FAST = {"steps": 6, "lr": 0.05, "lmbda": LMBDA}
SIDES = (100, 120)
ENCODERS = {"encode_keyframe", "encode_inter", "forward_keyframe", "forward_inter"}

# Stock's decoder for video in a process that knows stock CompressAI alone.
STOCK_DECODER = """
import pickle, sys, torch
from compressai.models.video.google import ScaleSpaceFlow
torch.set_num_threads(1)
state, coded = torch.load(sys.argv[1]), pickle.load(open(sys.argv[2], "rb"))
model = ScaleSpaceFlow().eval()
model.load_state_dict(state)
images = []
with torch.no_grad():
    for strings, shape in coded:
        decode = model.decode_inter if images else model.decode_keyframe
        images.append(decode(*images[-1:], strings, shape).clamp(0, 1))
assert not any(name.partition(".")[0] == "compressai_sga" for name in sys.modules)
torch.save(images, sys.argv[3])
"""


@pytest.fixture(scope="module")
def model():
    return video_model()


@pytest.fixture(scope="module")
def frames():
    return clip(*SIDES)


@pytest.fixture(scope="module")
def results(model, frames):
    return refine_frames(model, frames, "ssl", **FAST)


@pytest.fixture(scope="module")
def padded(frames):
    pad, _ = compute_padding(*SIDES, min_div=128)
    return [F.pad(x, pad) for x in frames], pad


def inside(x_hat, pad):
    left, right, top, bottom = pad
    return x_hat[..., top : x_hat.shape[2] - bottom, left : x_hat.shape[3] - right]


def parts(strings):
    return strings if isinstance(strings, list) else [*strings["motion"], *strings["residual"]]


def stock_frames(model, strings, shapes, clamp):
    """What the class's own decoder makes of the strings; `clamp` is applied to each image."""
    images = []
    with torch.no_grad():
        for coded, shape in zip(strings, shapes):
            x_hat = (
                type(model).decode_inter(model, images[-1], coded, shape)
                if images
                else type(model).decode_keyframe(model, coded, shape)
            )
            images.append(clamp(x_hat))
    return images


def test_stock_decodes_the_measured_frames_with_clamped_references_only(model, results):
    strings, shapes = [r.strings for r in results], [r.shape for r in results]
    decoded = stock_frames(model, strings, shapes, lambda x: x.clamp(0, 1))
    for result, x_hat, ours in zip(results, decoded, decode_frames(model, strings, shapes)):
        assert result.x_hat.shape == (1, 3, *SIDES)
        assert torch.equal(inside(x_hat, result.pad), result.x_hat) and torch.equal(x_hat, ours)
    drifting = stock_frames(model, strings, shapes, lambda x: x)
    assert (inside(drifting[1], results[1].pad).clamp(0, 1) - results[1].x_hat).abs().max() > 1e-3


def test_reported_numbers_are_those_of_strings_and_frame(results, frames):
    for result, x in zip(results, frames):
        size = sum(len(part[0]) for part in parts(result.strings))
        mse = (result.x_hat - x).square().mean().item()
        assert result.after.bpp.item() == pytest.approx(8 * size / (SIDES[0] * SIDES[1]))
        assert result.after.loss.item() == pytest.approx(result.after.bpp.item() + LMBDA * 255**2 * mse)


def test_every_frame_improves_on_its_unrefined_strings_with_the_same_reference(model, results, padded):
    frames, _ = padded
    decoded = decode_frames(model, [r.strings for r in results], [r.shape for r in results])
    for t, result in enumerate(results):
        assert result.after.loss < result.before.loss
        with torch.no_grad():
            if t == 0:
                x_hat, out = model.encode_keyframe(frames[0])
            else:
                x_hat, out = model.encode_inter(frames[t], decoded[t - 1])
        assert torch.equal(inside(x_hat, result.pad).clamp(0, 1), result.before_x_hat)
        before, after = parts(out["strings"]), parts(result.strings)
        assert 8 * sum(len(part[0]) for part in before) == pytest.approx(
            result.before.bpp.item() * SIDES[0] * SIDES[1]
        )
        assert before[0] != after[0] and (t == 0 or before[2] != after[2])  # y of motion and of residual


def test_zero_steps_give_the_unrefined_strings(model, frames, padded):
    results = refine_frames(model, frames, steps=0, lmbda=LMBDA)
    with torch.no_grad():
        x_hat, out = model.encode_keyframe(padded[0][0])
        for result, x in zip(results, [*padded[0][1:], None]):
            assert (result.strings, result.shape) == (out["strings"], out["shape"])
            assert torch.equal(result.after.loss, result.before.loss)
            if x is not None:
                x_hat, out = model.encode_inter(x, x_hat.clamp(0, 1))


@pytest.mark.parametrize("kind", ["key", "inter"])
def test_hard_rounding_is_what_the_stock_encoder_codes(kind, model, padded):
    frames, _ = padded
    frame = KeyFrame(model, frames[0]) if kind == "key" else InterFrame(model, frames[1], frames[0])
    adapter = build_adapter(frame, {})
    with torch.no_grad():
        latents, out = adapter.latents_of(frames[0])
        coded = adapter.code(latents, hard_rounding)
        again = adapter.compress(coded.grid, frames[0])
        assert torch.allclose(adapter.synthesise(coded.y_hat), frame.decoded(**out), atol=1e-5)
    assert again["strings"] == out["strings"]
    assert set(latents) == ({"y", "z"} if kind == "key" else {"y", "z", "y_motion", "z_motion"})
    assert set(coded.likelihoods) == set(coded.grid) == set(latents)


def test_all_latents_of_an_inter_frame_have_gradients(model, padded):
    frames, _ = padded
    adapter = build_adapter(InterFrame(model, frames[1], frames[0]), {})
    latents = {name: v.requires_grad_() for name, v in adapter.latents_of(frames[1])[0].items()}
    coded = adapter.code(latents, lambda v, name: v + (torch.round(v) - v).detach())
    x_hat = adapter.synthesise(coded.y_hat)
    (coded.bits().sum() / 1e4 + 100 * (x_hat - frames[1]).square().mean()).backward()
    assert all(v.grad.abs().max() > 0 for v in latents.values())


def test_polish_changes_the_residual_and_never_the_motion(model, frames):
    """The strings of motion are the unrefined ones; the residual's are not, and the loss falls."""
    results = refine_frames(model, frames[:2], "polish", lmbda=LMBDA)
    unrefined = refine_frames(model, frames[:1], "polish", lmbda=LMBDA)
    assert results[0].strings == unrefined[0].strings
    reference = decode_frames(model, [results[0].strings], [results[0].shape])[0]
    with torch.no_grad():
        _, out = model.encode_inter(F.pad(frames[1], results[0].pad), reference)
    assert results[1].strings["motion"] == out["strings"]["motion"]
    assert results[1].strings["residual"] != out["strings"]["residual"]
    assert all(r.after.loss < r.before.loss for r in results)


def test_batches_and_inference_mode(model, frames):
    batch = [torch.cat((x, 1 - x)) for x in frames[:2]]
    with torch.inference_mode():
        results = refine_frames(model, batch, "ssl", **FAST)
    decoded = decode_frames(model, [r.strings for r in results], [r.shape for r in results])
    for result, x_hat in zip(results, decoded):
        assert (inside(x_hat, result.pad) - result.x_hat).abs().max() < 1e-5
        assert (result.after.loss <= result.before.loss).all()


def test_a_frame_outside_0_and_1_is_coded_as_stock_does_and_measured_clamped(model, padded):
    """CompressAI's conversion from 4:2:0 leaves [0, 1]; its metrics clamp."""
    wide = padded[0][0] * 1.5 - 0.2
    with refined_frames(model, steps=0, lmbda=LMBDA) as results, torch.no_grad():
        _, out = model.encode_keyframe(wide)
    with torch.no_grad():
        assert out["strings"] == model.encode_keyframe(wide)[1]["strings"]
    mse = (results[0].x_hat - wide.clamp(0, 1)).square().mean()
    assert torch.allclose(results[0].after.mse, mse)


def test_the_context_serves_stocks_own_compress_and_likelihoods(model, padded):
    frames, pad = padded
    with refined_frames(model, "ssl", pad=pad, **FAST) as results:
        strings, shapes = model.compress(frames)
    assert [r.strings for r in results] == strings
    with torch.no_grad():
        decoded = model.decompress(strings, shapes)  # which does not clamp, as the encoder here
    for result, x_hat in zip(results, decoded):
        assert (inside(x_hat, pad).clamp(0, 1) - result.x_hat).abs().max() < 1e-5

    with refined_frames(model, "ssl", pad=pad, **FAST) as results, torch.no_grad():
        x_hat, key = model.forward_keyframe(frames[0])
        _, inter = model.forward_inter(frames[1], x_hat.clamp(0, 1))
    assert (set(key), set(inter)) == ({"keyframe"}, {"motion", "residual"})
    for likelihoods, result in zip((key, inter), results):
        bits = sum(-torch.log2(p).sum() for part in likelihoods.values() for p in part.values())
        real = result.after.bpp.item() * SIDES[0] * SIDES[1]
        assert 0.8 * real - 256 < bits < real  # a coder's start and end take some bytes a string


def test_model_is_left_as_it_was_and_contexts_nest(model, padded):
    fresh = video_model()
    with refined_frames(model, steps=1, lmbda=LMBDA) as outer:
        with refined_frames(model, steps=2, lmbda=LMBDA) as inner:
            model.encode_keyframe(padded[0][0])
        model.encode_keyframe(padded[0][0])

    def stop(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), refined_frames(model, lmbda=LMBDA, on_step=stop):
        model.encode_keyframe(padded[0][0])
    assert (len(outer), len(inner)) == (1, 1)
    assert [len(made[0].trace) for made in (outer, inner)] == [1, 2]
    assert not ENCODERS & set(vars(model))
    for (key, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values()):
        assert torch.equal(ours, theirs), key
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_trade_off_is_given_or_noted_or_refused(frames):
    model = video_model()
    with pytest.raises(ValueError, match="name it: lmbda=0.013"):
        refine_frames(model, frames[:1], steps=0)  # not trained, so that it cannot be estimated
    padded = [F.pad(x, (4, 4, 14, 14)) for x in frames]
    with pytest.raises(ValueError, match="from key frames only"), refined_frames(model, steps=0):
        model.encode_inter(padded[1], padded[0])
    set_trained_lmbda(model, 0.02)
    assert {r.lmbda for r in refine_frames(model, frames[:2], steps=0)} == {0.02}
    given = refine_frames(model, frames[:2], config=RefineConfig.make(steps=0, lmbda=0.3))
    assert {r.lmbda for r in given} == {0.3} and trained_lmbda(model) == 0.02


def test_what_is_refused_says_why(model, frames):
    with pytest.raises(UnsupportedModelError, match="has no `encode_keyframe`"):
        refine_frames(build("mbt2018-mean"), frames)
    broken = video_model()
    del broken.res_hyperprior.hyper_decoder_scale
    with pytest.raises(UnsupportedModelError, match="no `res_hyperprior.hyper_decoder_scale`"):
        check_video_model(broken)
    with pytest.raises(UnsupportedModelError, match=r"model.update\(\)"):
        refine_frames(type(model)(8, 8).eval(), frames, lmbda=LMBDA)
    with pytest.raises(ShapeError, match="one shape"):
        refine_frames(model, [frames[0], frames[1][..., :-2]], lmbda=LMBDA)
    with pytest.raises(InputError, match="give x / 255"):
        refine_frames(model, [frames[0] * 255], lmbda=LMBDA)
    with pytest.raises(ShapeError, match="multiples of 128"), refined_frames(model, lmbda=LMBDA):
        model.encode_keyframe(frames[0])
    with pytest.raises(UnsupportedModelError, match="g_a"):
        refine(model, frames[0])
    assert refine_frames(model, []) == []


@pytest.mark.slow
def test_stock_process_decodes_ssf2020(frames, tmp_path, run_python):
    """CompressAI's own class at its full width, in a process without this package."""
    torch.manual_seed(1)
    model = ScaleSpaceFlow().eval()
    for encoder in (model.img_encoder, model.motion_encoder, model.res_encoder):
        encoder[-1].weight.data.mul_(60)
    for hyperprior in (model.img_hyperprior, model.motion_hyperprior, model.res_hyperprior):
        hyperprior.hyper_decoder_scale.deconv3.bias.data.add_(0.8)
    model.update(force=True)
    results = refine_frames(model, frames, "ssl", steps=4, lr=0.05, lmbda=LMBDA)
    assert all(r.after.loss < r.before.loss for r in results)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    (tmp_path / "coded.pkl").write_bytes(pickle.dumps([(r.strings, r.shape) for r in results]))
    files = (tmp_path / name for name in ("state.pt", "coded.pkl", "images.pt"))
    run_python("-c", STOCK_DECODER, *files, cwd=tmp_path, check=True, COMPRESSAI_SGA_DISABLE="1")
    for result, x_hat in zip(results, torch.load(tmp_path / "images.pt")):
        assert (inside(x_hat, result.pad) - result.x_hat).abs().max() < 1e-5
