# SPDX-License-Identifier: Apache-2.0
"""Turn a run of denoiser.py into a file of the zoo: weights in fp16, manifest record, card, golden results.

    python zoo/train/publish_denoiser.py --run runs/hfd
    python zoo/train/publish_denoiser.py --run runs/diffc --data PHOTOS

In:  RUN/model.pth and RUN/run.json; for DiffC also the training photographs, because its table of costs is
     measured on crops of them.
Out: zoo/weights/NAME.safetensors (hfd-small, or diffc-small for diffc-a-small and diffc-f-small), its record
     in zoo/manifest.json and a card. Existing ones are replaced. Golden results come from real bitstreams of
     one sample image, by stock evaluation.
Fails with ``ValueError`` if a weight does not fit fp16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressai.utils.eval_model import __main__ as eval_model
from torch import Tensor, nn
from tqdm import tqdm

from compressai_sga import zoo
from compressai_sga.models.diffc.model import DiffCFlow
from compressai_sga.models.diffc.network import PixelDenoiser
from compressai_sga.models.hfd.network import ResidualDenoiser
from crops import CropSampler
from publish import LICENCE, ZOO, portable, read_run, training_data, write_text, write_weights

# A sampler turns differences in the last bit into other, equally good images.
TOLERANCE = {"bpp": 0.02, "psnr-rgb": 0.3}
GOLDEN_IMAGE = "parrot.png"
GOLDEN_QUALITIES = {"hfd": (1, 4), "diffc": (1,)}
COST_CROPS = 24


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, type=Path, help="folder that denoiser.py wrote")
    parser.add_argument("--data", type=Path, help="DiffC: folder of the training photographs")
    parser.add_argument("--no-wheel", action="store_true", help="not part of the package")
    args = parser.parse_args(argv)
    args.facts = read_run(args.run)
    if args.facts.get("architecture") == "diffc" and (args.data is None or not args.data.is_dir()):
        parser.error(f"--data must name the folder of the training photographs, not {args.data}")
    return args


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in fp16; settings and tables as they are."""
    stored = {}
    for name, tensor in state.items():
        narrow = tensor.dtype == torch.float32 and tensor.dim() > 0 and "deviations" not in name
        stored[name] = (tensor.half() if narrow else tensor).contiguous()
        if not torch.isfinite(stored[name].float()).all():
            raise ValueError(f"{name} does not fit fp16: its maximum is {tensor.abs().max()}")
    return stored


def models_of(kind: str, net: nn.Module) -> dict[str, dict[str, Any]]:
    """Names in the zoo, with their architectures and qualities."""
    if kind == "hfd":
        return {"hfd-small": {"architecture": "hfd", "qualities": list(net.qualities)}}
    return {
        f"diffc-{letter}-small": {"architecture": f"diffc-{letter}", "qualities": list(range(1, 9))}
        for letter in "af"
    }


def golden(models: dict[str, Any], qualities: tuple[int, ...]) -> dict[str, Any]:
    """bpp and PSNR by name, quality and image."""
    path = next(path for path in zoo.sample_images() if path.name == GOLDEN_IMAGE)
    results: dict[str, Any] = {}
    for name in models:
        for quality in tqdm(qualities, desc=name, leave=False):
            # By attribute: this package has put an `inference` there that does not pad for DiffC.
            values = eval_model.inference(zoo.load(name, quality), eval_model.read_image(path))
            chosen = {key: round(values[key], 5) for key in ("bpp", "psnr-rgb", "ms-ssim-rgb")}
            results.setdefault(name, {})[str(quality)] = {path.name: chosen}
    return results


def card(name: str, record: dict[str, Any]) -> str:
    """Markdown of one file."""
    names = ", ".join(f"`{each}`" for each in record["models"])
    qualities = next(iter(record["models"].values()))["qualities"]
    what = {
        "hfd-small": f"HFD's network behind `{record['first_stage']}` (`compressai_sga.models.hfd`)",
        "diffc-small": "DiffC's network, an unconditional diffusion model (`compressai_sga.models.diffc`)",
    }[name]
    first = next(iter(record["models"]))
    lines = [
        f"# {name}",
        f"{what}: {names}, qualities {qualities[0]} to {qualities[-1]}, one file of "
        f"{record['bytes'] / 1e6:.1f} MB for all.",
        "",
        "```python",
        f'net = compressai_sga.zoo.load("{first}", quality={qualities[0]})',
        "```",
        "",
        "| model | quality | image | bpp | PSNR, dB | MS-SSIM |",
        "|---|---|---|---|---|---|",
    ]
    for model, by_quality in record["golden"].items():
        for quality, images in by_quality.items():
            for image, values in images.items():
                cells = f"{values['bpp']:.4f} | {values['psnr-rgb']:.2f} | {values['ms-ssim-rgb']:.4f}"
                lines.append(f"| {model} | {quality} | {image} | {cells} |")
    training = record["training"]
    lines += [
        "",
        "Bits are those of real bitstreams, counted as CompressAI's `eval_model` does. Results on Kodak: "
        "`eval/results`.",
        "",
        f"Trained for {training['minutes']:.0f} minutes, {training['steps']} steps, on: "
        f"{'; '.join(record['training_data'])}. Never on a Kodak image.",
        f"Licence of the weights: {record['licence']}.",
        "",
        "Made by (`PHOTOS`: a folder with the training images; the time is on "
        f"{training['machine']}, beside other work):",
        "",
        "```",
        *record["command"].split(" && "),
        "```",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    kind = args.facts["architecture"]
    state = torch.load(args.run / "model.pth", map_location="cpu", weights_only=True)
    if kind == "hfd":
        net, name = ResidualDenoiser.from_state_dict(state), "hfd-small"
        first_stage = net.first_stage
    else:
        net, name, first_stage = DiffCFlow(PixelDenoiser.from_state_dict(half(state))), "diffc-small", None
        window = net.denoiser.window
        net.measure_costs(CropSampler(args.data, window, seed=1).batch(COST_CROPS, window))

    path = ZOO / "weights" / f"{name}.safetensors"
    written = write_weights(path, half(net.state_dict()))
    facts = args.facts
    record = {
        "models": models_of(kind, net),
        **written,
        "wheel": not args.no_wheel,
        "licence": LICENCE,
        "training_data": training_data(),
        "command": portable(facts["command"]),
        "training": {key: facts[key] for key in ("minutes", "machine")} | {"steps": facts["step"]},
        "golden": {},
        "tolerance": TOLERANCE,
        "first_stage": first_stage,
    }
    _put(record)
    record["golden"] = golden(record["models"], GOLDEN_QUALITIES[kind])
    _put(record)
    write_text(ZOO / "cards" / f"{name}.md", card(name, record))
    print(f"{path.name}: {written['bytes'] / 1e6:.1f} MB, golden {record['golden']}")


def _put(record: dict[str, Any]) -> None:
    """Insert or replace a record in the manifest."""
    path = ZOO / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    others = [each for each in manifest["denoisers"] if each["file"] != record["file"]]
    manifest["denoisers"] = sorted([*others, record], key=lambda each: each["file"])
    write_text(path, json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
