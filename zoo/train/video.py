# SPDX-License-Identifier: Apache-2.0
"""Train a small video model, `ssf2020-small`, on a few clips.

    python zoo/train/video.py CLIP CLIP --max-minutes 25 --lmbda 0.01 --out runs/ssf2020-small.pth.tar

In:  raw clips, 8 bits, 4:2:0: NAME_WIDTHxHEIGHT....yuv, or .y4m; at least three frames each.
Out: a checkpoint for `python -m compressai.utils.video.eval_model checkpoint ... -a ssf2020-small -p FILE`.
     It is written every minute and at the end; the log on stderr has a line every 15 seconds.
Fails with a sentence where a clip cannot be read.

Objective: bpp + lmbda * 255^2 * MSE, summed over three frames in a row, of which the first is a key frame
(Agustsson et al. 2020). Crops of 128x128 pixels, mirrored and played backwards at random. The learning rate
falls along a cosine with the processor's time, of which training takes --max-minutes.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compressai_sga.models.ssf import SmallScaleSpaceFlow  # noqa: E402

CROP, FRAMES, BATCH = 128, 3, 1
SAVE_SECONDS, LOG_SECONDS = 60, 15
Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_clip(path: Path) -> Planes:
    """Y (T, H, W), U and V (T, H/2, W/2) of a clip, 8 bits."""
    data, head = path.read_bytes(), b""
    if path.suffix == ".y4m":
        head, _, data = data.partition(b"\n")
        found = re.search(rb"W(\d+) H(\d+)", head)
        marker = b"FRAME\n"
    else:
        found, marker = re.search(r"(\d+)x(\d+)", path.name), b""
    if found is None or (head and re.search(rb" C(?!420)", head)) or b"p10" in head:
        raise SystemExit(f"error: {path} does not tell its size, or is not 4:2:0 of 8 bits; convert it")
    width, height = int(found[1]), int(found[2])
    size = len(marker) + width * height * 3 // 2
    count = len(data) // size
    if count < FRAMES or width % 2 or height % 2 or min(width, height) < CROP:
        raise SystemExit(
            f"error: {path} has {count} frames of {width}x{height}; at least {FRAMES} frames with even sides "
            f"of {CROP} or more are needed"
        )
    frames = np.frombuffer(data[: count * size], np.uint8).reshape(count, size)[:, len(marker) :]
    y, u, v = np.split(frames, (width * height, width * height * 5 // 4), axis=1)
    half = (count, height // 2, width // 2)
    return y.reshape(count, height, width), u.reshape(half), v.reshape(half)


def draw(clips: list[Planes], generator: np.random.Generator) -> list[Tensor]:
    """FRAMES tensors (BATCH, 3, CROP, CROP) of RGB, each clip as likely as any other."""
    from compressai.utils.video.eval_model.__main__ import convert_yuv420_to_rgb

    batch = []
    for _ in range(BATCH):
        y, u, v = clips[generator.integers(len(clips))]
        first = generator.integers(len(y) - FRAMES + 1)
        top, left = (2 * generator.integers((side - CROP) // 2 + 1) for side in y.shape[1:])
        inner = [slice(at, at + CROP) for at in (top, left)]
        half = [slice(at // 2, (at + CROP) // 2) for at in (top, left)]
        frames = [
            convert_yuv420_to_rgb(
                (y[(t, *inner)], u[(t, *half)], v[(t, *half)]), torch.device("cpu"), 255
            ).clamp(0, 1)
            for t in range(first, first + FRAMES)
        ]
        if generator.random() < 0.5:
            frames.reverse()
        flipped = [side for side in (2, 3) if generator.random() < 0.5]
        batch.append([frame.flip(flipped) for frame in frames])
    return [torch.cat(frames) for frames in zip(*batch)]


def loss_of(net: SmallScaleSpaceFlow, frames: list[Tensor], lmbda: float) -> tuple[Tensor, Tensor, Tensor]:
    """(bpp + lmbda * 255^2 * MSE, bpp, MSE), means over the frames."""
    out = net(frames)
    pixels = frames[0].numel() / 3
    bits = sum(
        -torch.log2(p).sum() for frame in out["likelihoods"] for part in frame.values() for p in part.values()
    )
    bpp = bits / pixels / len(frames)
    mse = sum((x - x_hat).square().mean() for x, x_hat in zip(frames, out["x_hat"])) / len(frames)
    return bpp + lmbda * 255**2 * mse, bpp, mse


def train(args: argparse.Namespace) -> None:
    """Run the training; see the module's docstring."""
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    clips = [read_clip(path) for path in args.clips]
    net = SmallScaleSpaceFlow(args.N, args.M).train()
    if args.init is not None:
        net.load_state_dict(torch.load(args.init, weights_only=True)["state_dict"])
    weights = [p for name, p in net.named_parameters() if not name.endswith(".quantiles")]
    quantiles = [p for name, p in net.named_parameters() if name.endswith(".quantiles")]
    optimizer = torch.optim.Adam(weights, lr=args.lr)
    auxiliary = torch.optim.Adam(quantiles, lr=1e-2)
    budget, start = args.max_minutes * 60, time.process_time()
    saved = logged = 0.0
    sums, step = np.zeros(3), 0
    while (spent := time.process_time() - start) < budget:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * spent / budget)))
        losses = loss_of(net, draw(clips, generator), args.lmbda)
        optimizer.zero_grad()
        losses[0].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        auxiliary.zero_grad()
        sum(net.aux_loss()).backward()
        auxiliary.step()
        sums += [value.item() for value in losses]
        step += 1
        if spent - logged >= LOG_SECONDS:
            mean = sums / step
            print(
                f"{spent / 60:.1f} min, step {step}: mean of the last steps: loss {mean[0]:.3f}, "
                f"{mean[1]:.3f} bpp, {-10 * math.log10(mean[2]):.2f} dB",
                file=sys.stderr,
                flush=True,
            )
            logged, sums = spent, sums * 0
            step = 0
        if spent - saved >= SAVE_SECONDS:
            saved = spent
            save(net, args.out)
    save(net, args.out)


def save(net: SmallScaleSpaceFlow, path: Path) -> None:
    """Write the checkpoint; the old one stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save({"state_dict": net.state_dict()}, part)
    part.replace(path)


def main(argv: list[str]) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description="Train ssf2020-small on raw clips.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("clips", type=Path, nargs="+", help="raw clips, 8 bits, 4:2:0, .yuv or .y4m")
    parser.add_argument("--max-minutes", type=float, default=25, help="of the processor's time")
    parser.add_argument("--lmbda", type=float, default=0.01, help="weight of the distortion")
    parser.add_argument("--N", type=int, default=32, help="channels between layers")
    parser.add_argument("--M", type=int, default=48, help="channels of latents")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at the start")
    parser.add_argument("--init", type=Path, help="checkpoint to start from (same N and M)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and crops")
    parser.add_argument("--out", type=Path, default=Path("runs/ssf2020-small.pth.tar"), help="checkpoint")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
