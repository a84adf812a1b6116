# SPDX-License-Identifier: Apache-2.0
"""Makes the golden `.csga` files of this folder that are missing, their PNGs and golden.json.

    python tests/golden/make.py

In:  the zoo's sample houses.png. Out: NAME.csga, NAME.png and an entry of golden.json for each row of
CASES. Existing files stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import ImageCms

from compressai_sga import zoo
from compressai_sga.files import (
    Picture,
    compress_picture,
    decompress_picture,
    describe,
    read_picture,
    write_picture,
)

HERE = Path(__file__).resolve().parent
CASES = {  # model, quality, coder (C3 has its own), (top, left, height, width), mode, with a profile
    "mean-exact": ("mbt2018-mean-small", 3, "constriction-exact", (30, 60, 96, 130), "RGB", True),
    "mean-ans-1x1": ("mbt2018-mean-small", 5, "constriction-ans", (0, 0, 1, 1), "RGB", False),
    "factorized-range-grey":
        ("bmshj2018-factorized-small", 3, "constriction-range", (9, 9, 65, 33), "L", False),
    "universal-exact": ("mbt2018-mean-uq-small", 3, "constriction-exact", (10, 20, 64, 100), "RGB", False),
    "context-ans": ("mbt2018-small", 3, "constriction-ans", (100, 100, 64, 70), "RGB", False),
    "c3-fast": ("c3-fast", 5, None, (100, 60, 61, 83), "RGB", False),
    "c3-paper-grey": ("c3-paper", 3, None, (40, 20, 32, 48), "L", False),
    # Of version 2; those above are of version 1, which is written no more.
    "mean-exact-2": ("mbt2018-mean-small", 3, "constriction-exact", (40, 50, 90, 70), "RGB", True),
    "factorized-range-grey-2":
        ("bmshj2018-factorized-small", 3, "constriction-range", (9, 9, 33, 65), "L", False),
    "c3-fast-2": ("c3-fast", 5, None, (100, 60, 40, 48), "RGB", True),
}  # fmt: skip


def main() -> None:
    source = read_picture(next(p for p in zoo.sample_images() if p.name == "houses.png"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = HERE / "golden.json"
    golden = json.loads(path.read_text()) if path.is_file() else {}
    for name, (model, quality, coder, (top, left, height, width), mode, with_profile) in CASES.items():
        if f"{name}.csga" in golden:
            continue
        pixels = source.pixels[top : top + height, left : left + width]
        if mode == "L":
            pixels = pixels.mean(2).round().astype(np.uint8)
        picture = Picture(pixels.copy(), profile if with_profile else None)
        steps = 200 if coder is None else None  # of C3's fit
        data, _ = compress_picture(picture, model=model, quality=quality, coder=coder, steps=steps)
        (HERE / f"{name}.csga").write_bytes(data)
        write_picture(HERE / f"{name}.png", decompress_picture(data))
        description = describe(data)
        golden[f"{name}.csga"] = {
            "bytes": description.file_bytes,
            "coder": description.container.coder,
            "checksum": f"{description.container.checksum:08x}",
            "version": description.container.version,
        }
    path.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
