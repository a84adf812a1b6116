# SPDX-License-Identifier: Apache-2.0
"""Turn a training run into a weight of the zoo: file, manifest record, card, golden results.

    python zoo/train/publish.py --name mbt2018-mean-small --quality 3 --run runs/mbt2018-mean-3 \\
        [--kodak ../shared/data/kodak]

In:  RUN/model.pth and RUN/run.json of train.py. Where run.json is missing, the architecture is the
     name without "-small", lmbda is the quality's, minutes and steps come from RUN/log.jsonl, and
     --command and --machine must be given. N and M are always read off the weights. --before names
     the run that this one went on from at the same quality: its time and command are added.
Out: zoo/weights/NAME-QUALITY.safetensors, its record in zoo/manifest.json and zoo/cards/NAME.md,
     all replaced when they are there already. The file is the stock state dict with the transforms
     in fp16, the entropy bottleneck exact and the Gaussian tables left out (empty: `update()` fills
     them). Golden results are of real bitstreams of the sample images, by CompressAI's own
     evaluation; with --kodak also the means over that folder, before and after rounding to fp16.
     The record's lmbda is one that refinement can use: of a model trained for absolute errors, the one
     for MSE that suits it (`models.rda.mse_lmbda`). Training's own stands beside the time it took.
Fails with ``ValueError`` when a weight does not fit fp16, or a needed value is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressai.utils.eval_model.__main__ import inference, read_image
from compressai.zoo.image import model_architectures
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

ZOO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ZOO.parent), str(Path(__file__).resolve().parent)]

from train import LMBDA  # noqa: E402

from compressai_sga import zoo  # noqa: E402
from compressai_sga.models import rda  # noqa: E402
from compressai_sga.models.universal import ARCHITECTURES  # noqa: E402

TRAINING_DATA = [
    "23 photographs of CLIC 2025's validation set (Unsplash licence)",
    "25 images of gb82-image-set (CC0 1.0)",
]
LICENCE = "Apache-2.0"
# Another processor sums convolutions in another order, and a few latents round the other way.
TOLERANCE = {"bpp": 0.01, "psnr-rgb": 0.05}
METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")
GAUSSIAN_TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="of the model in the zoo")
    parser.add_argument("--quality", required=True, type=int, choices=range(1, 9))
    parser.add_argument("--run", required=True, type=Path, help="folder that train.py wrote")
    parser.add_argument("--before", type=Path, help="folder of the run that --run went on from")
    parser.add_argument("--arch", choices=sorted(model_architectures))
    parser.add_argument("--command", help="what made the run, with PHOTOS for the training images")
    parser.add_argument("--machine", help="on which it ran, such as '2-core x86_64 CPU'")
    parser.add_argument("--kodak", type=Path, help="folder of the 24 Kodak images: report means")
    parser.add_argument("--no-wheel", action="store_true", help="not part of the package")
    return parser.parse_args(argv)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run; without one, the minutes and steps that the log ends with."""
    path, log = folder / "run.json", folder / "log.jsonl"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if log.is_file():
        return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return {}


def run_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the run says, with that of the run before, completed by the arguments."""
    facts = read_run(args.run)
    if args.before is not None:
        before = read_run(args.before)
        facts |= {key: round(before[key] + facts[key], 2) for key in ("minutes", "step")}
        if "command" in before and "command" in facts:
            facts["command"] = f"{before['command']} && {facts['command']}"
    facts.setdefault("architecture", args.name.removesuffix("-small"))
    facts.setdefault("lmbda", LMBDA[args.quality - 1])
    given = {"architecture": args.arch, "command": args.command, "machine": args.machine}
    facts |= {key: value for key, value in given.items() if value is not None}
    for key in ("architecture", "lmbda", "minutes", "step", "command", "machine"):
        if key not in facts:
            raise ValueError(f"{args.run} does not say {key!r}; give --{key} or train again")
    if facts["architecture"] not in model_architectures:
        raise ValueError(f"no architecture {facts['architecture']!r}; name one with --arch")
    return facts


def to_file(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The tensors as they are stored: see the module's docstring."""
    parameters = {name for name, _ in net.named_parameters()}
    stored = {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        if module.endswith("gaussian_conditional") and last in GAUSSIAN_TABLES:
            stored[name] = tensor.new_empty(0)
        elif name in parameters and "entropy_bottleneck" not in name:
            stored[name] = tensor.half()
            if not torch.isfinite(stored[name]).all():
                raise ValueError(f"{name} does not fit fp16: its maximum is {tensor.abs().max()}")
        elif last == "mask":  # of a masked convolution: zeros and ones
            stored[name] = tensor.bool()
        else:
            stored[name] = tensor
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def evaluate(net: nn.Module, images: list[Path], title: str) -> dict[str, dict[str, float]]:
    """bpp, PSNR and MS-SSIM of each image from its real bitstream, by stock `eval_model`."""
    results = {}
    for path in tqdm(images, desc=title, leave=False):
        values = inference(net, read_image(path))
        results[path.name] = {key: round(values[key], 5) for key in METRICS}
    return results


def mean(results: dict[str, dict[str, float]]) -> dict[str, float]:
    return {key: round(sum(r[key] for r in results.values()) / len(results), 5) for key in METRICS}


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def update_manifest(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the record in its place; returns all records of its name."""
    path = ZOO / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    key = (record["name"], record["quality"])
    others = [r for r in manifest["weights"] if (r["name"], r["quality"]) != key]
    manifest["weights"] = sorted([*others, record], key=lambda r: (r["name"], r["quality"]))
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    return [r for r in manifest["weights"] if r["name"] == record["name"]]


def card(records: list[dict[str, Any]]) -> str:
    """Markdown of one model: what it is, results, how to make it again."""
    first = records[0]
    what = f"CompressAI's stock `{first['architecture']}`"
    if first["architecture"] in ARCHITECTURES:
        stock = first["architecture"].removesuffix("-uq")
        what = f"CompressAI's `{stock}` with universal quantisation (`compressai_sga.models.universal`)"
    loss = "MSE (loss: bpp + λ·255²·MSE)"
    if first["architecture"] in rda.ARCHITECTURES:
        what = f"Rate-distortion autoencoder `{first['architecture']}` (`compressai_sga.models.rda`)"
        loss = f"the loss {rda.LOSSES[first['training']['distortion']]}"
    lines = [
        f"# {first['name']}",
        f"{what}, with few channels, trained for {loss}.",
        "",
        "```python",
        f'net = compressai_sga.zoo.load("{first["name"]}", quality={first["quality"]})',
        "```",
        "",
        "| quality | λ | N | M | MB | training | image | bpp | PSNR, dB | MS-SSIM |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        training = f"{r['training']['minutes']:.0f} min, {r['training']['steps']} steps"
        lmbda = r["training"].get("lmbda", r["lmbda"])
        head = f"| {r['quality']} | {lmbda} | {r['N']} | {r['M']} | {r['bytes'] / 1e6:.1f} | "
        for image, values in r["golden"].items():
            lines.append(f"{head}{training} | {image} | {_cells(values)} |")
            head, training = "| | | | | | ", ""
        if r.get("kodak"):
            label = f"mean of {r['kodak']['images']} Kodak images"
            lines.append(f"{head}{training} | {label} | {_cells(r['kodak'])} |")
            full = _cells(r["kodak"]["float32"])
            lines.append(f"{head}{training} | the same before rounding to fp16 | {full} |")
    lines += [
        "",
        "Bits are those of real bitstreams, counted as CompressAI's `eval_model` does; PSNR and "
        "MS-SSIM are of 8-bit RGB, and means are means of the values of the images.",
        "",
        f"Trained on: {'; '.join(first['training_data'])}. Never on a Kodak image.",
        f"Licence of the weights: {first['licence']}.",
        "",
        "Made by (`PHOTOS`: a folder with the training images; times are on "
        f"{first['training']['machine']}):",
        "",
        "```",
        *(line for r in records for line in r["command"].split(" && ")),
        "```",
        "",
    ]
    return "\n".join(lines)


def _cells(values: dict[str, float]) -> str:
    return f"{values['bpp']:.4f} | {values['psnr-rgb']:.2f} | {values['ms-ssim-rgb']:.4f}"


def trade_off(architecture: str, lmbda: float) -> dict[str, Any]:
    """Metric and lmbda that refinement can use, and what the loss of training was where it was another."""
    if architecture not in rda.ARCHITECTURES:
        return {"metric": "mse", "lmbda": lmbda, "loss": {}}
    kind = rda.ARCHITECTURES[architecture].distortion
    loss = {"distortion": kind, "lmbda": lmbda}
    if kind == "ms-ssim":
        return {"metric": kind, "lmbda": lmbda, "loss": loss}
    return {"metric": "mse", "lmbda": rda.mse_lmbda(lmbda, kind), "loss": loss}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    facts = run_facts(args)
    architecture = facts["architecture"]
    state = torch.load(args.run / "model.pth", map_location="cpu", weights_only=True)
    full = model_architectures[architecture].from_state_dict(state).eval()
    full.update()

    path = ZOO / "weights" / f"{args.name}-{args.quality}.safetensors"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(to_file(state, full), temporary, metadata={"licence": LICENCE})
    temporary.chmod(0o644)  # save_file makes it private
    temporary.replace(path)
    net = zoo.load_weights(path, architecture)

    kodak = None
    if args.kodak is not None:
        images = sorted(args.kodak.glob("*.png"))
        kodak = {"images": len(images), **mean(evaluate(net, images, "Kodak"))}
        kodak["float32"] = mean(evaluate(full, images, "Kodak, before fp16"))
    content = path.read_bytes()
    trained = trade_off(architecture, facts["lmbda"])
    record = {
        "name": args.name,
        "quality": args.quality,
        "architecture": architecture,
        "N": full.N,
        "M": full.M,
        "metric": trained["metric"],
        "lmbda": trained["lmbda"],
        "file": path.relative_to(ZOO).as_posix(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "wheel": not args.no_wheel,
        "licence": LICENCE,
        "training_data": TRAINING_DATA,
        "command": facts["command"],
        "training": {
            "minutes": facts["minutes"],
            "steps": facts["step"],
            "machine": facts["machine"],
            **trained["loss"],
        },
        "gaussian_tables_crc32": zoo.tables_checksum(net),
        "golden": evaluate(net, zoo.sample_images(), "samples"),
        "tolerance": TOLERANCE,
        "kodak": kodak,
    }
    write_text(ZOO / "cards" / f"{args.name}.md", card(update_manifest(record)))
    print(f"{path.name}: {len(content) / 1e6:.1f} MB, golden {record['golden']}, Kodak {kodak}")


if __name__ == "__main__":
    main()
