# SPDX-License-Identifier: Apache-2.0
"""Fit the critic's model of photographs, and write it: compressai_sga/metrics/photographs.json.

    python zoo/train/critic_model.py --data PHOTOS

The P of `compressai_sga.metrics.critic` is a `PixelModel`. It is fitted in closed form to one square
of 256 pixels from the diagonal of every photograph, at one of the scales of the other recipes (crops.py).

In:  a folder of photographs (searched recursively; those of held_out.txt are left out); names to leave out,
     by default those images of gb82-image-set that are not photographs. Out: the file; on stdout its bits a
     pixel on the same squares. Four hundred photographs take 6 GB.
Fails with ``FileNotFoundError`` if there is no image of at least 256 pixels a side, with ``ValueError`` if an
image cannot be read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from compressai_sga.metrics.pixel_model import PixelModel
from crops import NO_PHOTOGRAPHS, photographs, read_rgb, resized

SIDE_PX = 256
PLACES = 3
AT_ONCE = 16  # squares, to bound the memory of the sums
OUT = Path(__file__).resolve().parents[2] / "compressai_sga" / "metrics" / "photographs.json"


def square(image: Image.Image, index: int) -> Tensor | None:
    """A square of 256 pixels, (1, 3, 256, 256), uint8; None if the image is too small.

    Args:
        image: any, in RGB.
        index: of the photograph; selects scale and place on the diagonal in turn.
    """
    scaled = resized(image, SIDE_PX)
    if not scaled:
        return None
    image, place = scaled[index % len(scaled)], index // len(scaled) % PLACES
    left, top = (place * (side - SIDE_PX) // (PLACES - 1) for side in image.size)
    return pil_to_tensor(image.crop((left, top, left + SIDE_PX, top + SIDE_PX)))[None]


def as_json(model: PixelModel, source: str) -> str:
    """The file of a model, weights with five digits."""
    planes = [
        {
            "predictor": [float(f"{weight:.5g}") for weight in plane.predictor],
            "magnitude": [float(f"{weight:.5g}") for weight in plane.magnitude],
            "choices": plane.choices,
        }
        for plane in model.planes
    ]
    return json.dumps({"source": source, "planes": planes}, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--leave-out", nargs="*", default=NO_PHOTOGRAPHS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    paths = photographs(args.data, args.leave_out)
    found = [square(read_rgb(path), index) for index, path in enumerate(tqdm(paths, desc="reading"))]
    folders = sorted({path.parent.name for path, x in zip(paths, found) if x is not None})
    crops = [x for x in found if x is not None]
    if not crops:
        raise FileNotFoundError(
            f"{args.data} holds no image of {SIDE_PX} px a side; name another with --data"
        )
    model = PixelModel.fit([torch.cat(crops[i : i + AT_ONCE]) for i in range(0, len(crops), AT_ONCE)])
    bpp = float(model.bits(torch.cat(crops)).mean()) / SIDE_PX**2
    source = (
        f"{len(crops)} squares of {SIDE_PX} px, one of a photograph, of the folders {', '.join(folders)} "
        f"(zoo/README.md has their terms), {bpp:.3f} bits a pixel in sample"
    )
    args.out.write_text(as_json(model, source), encoding="utf-8")
    print(f"{len(crops)} squares: {bpp:.3f} bits a pixel")


if __name__ == "__main__":
    main()
