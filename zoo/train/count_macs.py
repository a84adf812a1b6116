# SPDX-License-Identifier: Apache-2.0
"""Count the multiplications of decoding for every model of the manifest, and write them into it.

    python zoo/train/count_macs.py

In:  zoo/manifest.json and the weights that it names. Out: `decoder_kmacs_px` of every record: thousands of
multiplications a pixel, counted while a crop of 64x64 pixels of the first sample image is decompressed
(`compressai_sga.models.macs`). publish.py counts a new model by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compressai.utils.eval_model.__main__ import read_image
from torch import nn
from tqdm import tqdm

ZOO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ZOO.parent))

from compressai_sga import zoo  # noqa: E402
from compressai_sga.models.macs import decoder_macs_px  # noqa: E402

SIDE_PX = 64


def kmacs(net: nn.Module) -> float:
    """Count one model of the zoo on the crop described at the head of this file."""
    x = read_image(zoo.sample_images()[0])[None, :, :SIDE_PX, :SIDE_PX]
    return round(decoder_macs_px(net, x) / 1000, 3)


def main() -> None:
    path = ZOO / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    counted = {
        (record.name, record.quality): kmacs(zoo.load(record.name, record.quality, record.metric))
        for record in tqdm(zoo.list_models(), desc="models")
    }
    for record in manifest["weights"]:
        record["decoder_kmacs_px"] = counted[record["name"], record["quality"]]
    for record in manifest["joint"]:
        record["decoder_kmacs_px"] = counted[record["name"], int(next(iter(record["qualities"])))]
    for record in manifest["denoisers"]:
        record["decoder_kmacs_px"] = {
            name: {str(quality): counted[name, quality] for quality in model["qualities"]}
            for name, model in record["models"].items()
        }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
