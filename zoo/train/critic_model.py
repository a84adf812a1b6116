# SPDX-License-Identifier: Apache-2.0
"""Fit the critic's model of photographs, and write it as Python: compressai_sga/metrics/photographs.py.

    python zoo/train/critic_model.py --data PHOTOS

The P of `compressai_sga.metrics.critic` is a `PixelModel`, fitted in closed form to three squares of 256
pixels of every photograph, on its diagonal. Its parameters are few enough to be code.

In:  a folder of photographs (searched recursively); names to leave out, by default those of gb82-image-set
     that are no photographs. Out: the file; on stdout its bits a pixel on the same squares.
Fails with ``FileNotFoundError`` where there is no image of at least 256 pixels a side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from compressai.utils.eval_model.__main__ import collect_images, read_image
from torch import Tensor
from tqdm import tqdm

from compressai_sga.metrics.pixel_model import PixelModel, Plane

SIDE_PX = 256
SQUARES = 3
NO_PHOTOGRAPHS = tuple(f"{name}-lossless.png" for name in ("mc1", "mc2", "mc3", "mies", "house"))
OUT = Path(__file__).resolve().parents[2] / "compressai_sga" / "metrics" / "photographs.py"
HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""The pixel model's parameters for photographs: the P of the critic.

Written by zoo/train/critic_model.py from {squares} squares of 256 px of {photographs} photographs: CLIC 2025
(Unsplash licence) and gb82 (CC0), {bpp:.3f} bits a pixel in sample. Do not edit.
"""

from __future__ import annotations

from .pixel_model import PixelModel, Plane

__all__ = ["PHOTOGRAPHS"]

PHOTOGRAPHS = PixelModel(
    planes=(
'''


def squares(path: Path) -> list[Tensor]:
    """Squares of 256 pixels on the diagonal, (1, 3, 256, 256), uint8; none of an image that is too small."""
    x = (read_image(path) * 255).round().to(torch.uint8)
    free = [side - SIDE_PX for side in x.shape[1:]]
    if min(free) < 0:
        return []
    corners = {tuple(part * side // (SQUARES - 1) for side in free) for part in range(SQUARES)}
    return [x[None, :, top : top + SIDE_PX, left : left + SIDE_PX] for top, left in sorted(corners)]


def as_python(plane: Plane) -> str:
    """The constructor of a plane, as a formatter would lay it out."""
    lines = ["        Plane("]
    for name in ("predictor", "magnitude"):
        values = ("".join((" " * 16, f"{value:.5g},")) for value in getattr(plane, name))
        lines += [f"            {name}=(", *values, "            ),"]
    return "\n".join([*lines, f"            choices={plane.choices},", "        ),"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--leave-out", nargs="*", default=NO_PHOTOGRAPHS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    paths = [Path(path) for path in collect_images(str(args.data)) if Path(path).name not in args.leave_out]
    found = [squares(path) for path in tqdm(paths, desc="reading")]
    crops = [square for each in found for square in each]
    if not crops:
        raise FileNotFoundError(
            f"{args.data} holds no image of {SIDE_PX} px a side; name another with --data"
        )
    model = PixelModel.fit([torch.cat(crops)])
    bpp = float(model.bits(torch.cat(crops)).mean()) / SIDE_PX**2
    head = HEAD.format(squares=len(crops), photographs=sum(map(bool, found)), bpp=bpp)
    text = head + "\n".join(map(as_python, model.planes)) + "\n    ),\n)\n"
    args.out.write_text(text, encoding="utf-8")
    print(f"{len(crops)} squares: {bpp:.3f} bits a pixel")


if __name__ == "__main__":
    main()
