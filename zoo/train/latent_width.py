# SPDX-License-Identifier: Apache-2.0
"""The best PSNR of M numbers for each 16x16 block: a guide for choosing -M.

    python zoo/train/latent_width.py --data PHOTOS

In:  photographs. PCA is fitted to crops that are drawn as for training (crops.py). The held-out photographs
     are measured at the largest scale of training, or with --images other images as they are.
Out: for some M, the PSNR in dB (mean over the images) of PCA, the best linear map of 16x16x3 blocks to M
     numbers and back, without quantisation. A codec with four stride-2 stages and M latent channels is not
     linear and may do better. But if this PSNR is near the one that the codec should reach, its latent is too
     narrow: it has an error that more bits cannot reduce.
Fails with ``ValueError`` if there is no image to fit on or to measure, or one that cannot be read.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from crops import CropSampler, list_images, photographs, read_rgb, resized

WIDTHS = (96, 144, 192, 256, 320)
BLOCK = 16
CROPS, CROP_PX = 256, 256


def blocks(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (number of blocks, 3 * 16 * 16)."""
    return nn.functional.unfold(images, BLOCK, stride=BLOCK).transpose(1, 2).flatten(0, 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs to fit on")
    parser.add_argument(
        "--images", type=Path, help="folder of images to measure (default: the held-out ones)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    fitted = blocks(CropSampler(args.data).batch(CROPS, CROP_PX))
    mean = fitted.mean(0)
    _, vectors = torch.linalg.eigh((fitted - mean).T @ (fitted - mean))
    if args.images is None:
        images = [resized(read_rgb(path), BLOCK)[0] for path in photographs(args.data, held=True)]
    else:
        images = [read_rgb(path) for path in list_images(args.images)]
    if not images:
        raise ValueError(
            f"{args.images or args.data} holds no image to measure; name a folder that does with --images"
        )
    print("| M | " + " | ".join(map(str, WIDTHS)) + " |")
    print("|---" * (1 + len(WIDTHS)) + "|")
    psnrs = []
    for width in WIDTHS:
        basis = vectors[:, -width:]
        errors = []
        for image in images:
            centred = blocks(to_tensor(image)[None]) - mean
            residual = centred - (centred @ basis) @ basis.T
            errors.append(-10 * math.log10(residual.pow(2).mean().item()))
        psnrs.append(sum(errors) / len(errors))
    print("| PSNR, dB | " + " | ".join(f"{p:.1f}" for p in psnrs) + " |")


if __name__ == "__main__":
    main()
