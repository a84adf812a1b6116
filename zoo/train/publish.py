# SPDX-License-Identifier: Apache-2.0
"""Turn a joint training run into a model of the zoo: one file, manifest record, card, golden results.

    python zoo/train/publish.py --name mbt2018-mean-small --run runs/mbt2018-mean --kodak ../shared/data/kodak

In:  RUN/model.pth (joint weights, at gain 1) and RUN/run.json of train.py. Each rate of the run becomes the
     quality that has its lmbda in the table of lmbda. A run for one rate becomes a model of one quality.
Out: zoo/weights/NAME.safetensors (its content is described in `compressai_sga.zoo_joint`), its record in the
     list `joint` of zoo/manifest.json, and zoo/cards/NAME.md. Existing ones are replaced. Records of the same
     name with one file for each quality are removed from the manifest. Golden results come from real
     bitstreams of the sample images, by CompressAI's own evaluation, at every quality; with --kodak also the
     means over that folder, before and after rounding to fp16. The lmbda of a record is one that refinement
     can use: for a model trained for absolute errors it is a matching one for MSE (`models.rda.mse_lmbda`).
     The lmbda of training is recorded together with the training time.
Fails with ``ValueError`` if the run is not a joint one or is of another architecture, or if a weight does not
fit fp16.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from compressai.utils.eval_model.__main__ import inference, read_image
from compressai.zoo.image import model_architectures
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

ZOO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ZOO.parent), str(Path(__file__).resolve().parent)]

from compressai_sga import zoo  # noqa: E402
from compressai_sga.models import rda  # noqa: E402
from compressai_sga.models.families import family_of  # noqa: E402
from compressai_sga.models.gains import fold, load_joint  # noqa: E402
from compressai_sga.zoo_joint import folded, stored  # noqa: E402
from count_macs import kmacs  # noqa: E402
from crops import held_out  # noqa: E402
from train import LMBDA  # noqa: E402

PHOTOGRAPHS = {
    "clic2025": (23, "photographs of CLIC 2025's validation set", "Unsplash licence"),
    "gb82": (25, "images of gb82-image-set", "CC0 1.0"),
    "cid22_training": (209, "photographs of CID22's training set", "CC BY-SA 4.0"),
    "budgie_cc0": (15, "photographs of Budgie Backgrounds", "CC0 1.0"),
    "elementary_mixed": (
        34,
        "photographs of elementary's wallpapers",
        "Unsplash, Pexels and Pixabay licences, CC0 1.0, CC BY 4.0, public domain",
    ),
    "lomiri_ccby": (9, "photographs of Lomiri's wallpapers", "CC BY 4.0, one CC0 1.0"),
    "pexels_oceanic": (16, "photographs of oceanic-awesomewm-theme", "Pexels licence"),
    "pexels_trident": (10, "photographs of Project Trident", "Pexels licence"),
    "unsplash_pexels_worksuite": (31, "photographs of work_suite", "Unsplash and Pexels licences"),
    "unsplash_popos": (13, "photographs of Pop!_OS's wallpapers", "Unsplash, uploaded under CC0 1.0"),
    "unsplash_squeeze": (27, "photographs of Squeeze's test files", "Unsplash licence"),
}
"""The photographs by folder: how many, what, terms. Those of `held_out.txt` among them are not trained on."""
LICENCE = "Apache-2.0"
# Another processor sums convolutions in another order, and a few latents round the other way.
TOLERANCE = {"bpp": 0.01, "psnr-rgb": 0.05}
METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="of the model in the zoo")
    parser.add_argument("--run", required=True, type=Path, help="folder that train.py wrote")
    parser.add_argument("--machine", help="on which it ran, such as '2-core x86_64 CPU' (as run.json says)")
    parser.add_argument("--kodak", type=Path, help="folder of the 24 Kodak images: report means")
    parser.add_argument("--no-wheel", action="store_true", help="not part of the package")
    return parser.parse_args(argv)


def training_data() -> list[str]:
    """The present training photographs, without the held-out ones, with their terms."""
    aside = [name.split("/")[0] for name in held_out()]
    rows = PHOTOGRAPHS.items()
    return [f"{count - aside.count(folder)} {what} ({terms})" for folder, (count, what, terms) in rows]


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder of a run of zoo/train that has ended")
    return json.loads(path.read_text(encoding="utf-8"))


def portable(command: str) -> str:
    """The command without folders of this machine and without --state, which does not change results."""
    words = shlex.split(command)
    if "--state" in words:
        index = words.index("--state")
        del words[index : index + 2]
    for option in ("--data", "--out", "--init-from"):
        if option in words:
            index = words.index(option) + 1
            path = Path(words[index])
            roots = [i for i, part in enumerate(path.parts[:-1]) if part in ("runs", "zoo")]
            inside = Path(*path.parts[roots[-1] :]) if roots else Path("runs", path.name)
            words[index] = "PHOTOS" if option == "--data" else inside.as_posix()
    return shlex.join(words)


def joint_model(run: Path, facts: dict[str, Any]) -> nn.Module:
    """The model of a run at gain 1, in eval mode.

    Args:
        run: its folder.
        facts: its run.json.

    Raises:
        ValueError: the weights are for one rate (not trained jointly) or of another architecture.
    """
    path, name = run / "model.pth", facts.get("architecture")
    if "lmbdas" not in facts:
        raise ValueError(
            f"{run / 'run.json'} has no lmbdas: its training was for one rate, not a joint one; train again"
        )
    if name not in model_architectures:
        raise ValueError(f"no architecture is called {name!r}, which {run / 'run.json'} names; train again")
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the training's command again, which writes it at its end")
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        net = load_joint(model_architectures[name], state)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"{path} does not hold weights of {name}, which run.json names "
            f"({str(error).strip().splitlines()[0]}); publish a folder as train.py left it"
        ) from error
    if any(key.endswith("._quantized_cdf") and table.numel() for key, table in state.items()):
        raise ValueError(
            f"{path} has coding tables: its weights are folded for one rate, not joint; publish the "
            "model.pth that train.py wrote"
        )
    return net.eval()


def qualities_of(facts: dict[str, Any]) -> dict[int, float]:
    """The lmbda of training, by quality.

    Raises:
        ValueError: the run has a lmbda that belongs to no quality.
    """
    architecture = model_architectures[facts["architecture"]]
    table = LMBDA
    if facts["architecture"] in rda.ARCHITECTURES:
        table = rda.LMBDA[architecture.distortion]
    for lmbda in facts["lmbdas"]:
        if lmbda not in table:
            raise ValueError(
                f"lmbda {lmbda:g} of the run is no quality's; theirs are {', '.join(map(str, table))}; train "
                "for all of them, or with --quality"
            )
    return {table.index(lmbda) + 1: lmbda for lmbda in facts["lmbdas"]}


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


def write_weights(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write ZOO/weights/NAME; what the manifest says of the file."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"licence": LICENCE})
    temporary.chmod(0o644)  # save_file makes it private
    temporary.replace(path)
    content = path.read_bytes()
    return {
        "file": "/".join(path.parts[-2:]),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


def update_manifest(record: dict[str, Any]) -> None:
    """Insert a joint record; it replaces records of its name that have one file for each quality."""
    path = ZOO / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    others = [each for each in manifest["joint"] if each["name"] != record["name"]]
    manifest["joint"] = sorted([*others, record], key=lambda each: each["name"])
    replaced = [each["file"] for each in manifest["weights"] if each["name"] == record["name"]]
    manifest["weights"] = [each for each in manifest["weights"] if each["name"] != record["name"]]
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    if replaced:
        print(f"no longer in the manifest, to be deleted: {', '.join(replaced)}")


def card(record: dict[str, Any]) -> str:
    """Markdown of one model: what it is, results, how to make it again."""
    name, architecture, training = (record[key] for key in ("name", "architecture", "training"))
    qualities = record["qualities"]
    family = family_of(architecture)
    what = family.card.format(name=architecture, stock=family.stock_name(architecture))
    loss = "MSE (loss: bpp + λ·255²·MSE)"
    if architecture in rda.ARCHITECTURES:
        loss = f"the loss {rda.LOSSES[rda.ARCHITECTURES[architecture].distortion]}"
    low, high = record["lmbda_range"]
    lines = [
        f"# {name}",
        f"{what}, with few channels (N = {record['N']}, M = {record['M']}), trained for {loss}, for all its "
        f"rates at once: one file of {record['bytes'] / 1e6:.1f} MB.",
        "",
        "```python",
        f'net = compressai_sga.zoo.load("{name}", quality={next(iter(qualities))})',
        f'net = compressai_sga.zoo.load("{name}", lmbda={(low * high) ** 0.5:.2g})',
        "```",
        "",
        "| quality | λ | image | bpp | PSNR, dB | MS-SSIM |",
        "|---|---|---|---|---|---|",
    ]
    for quality, own in qualities.items():
        head = f"| {quality} | {own.get('training', {}).get('lmbda', own['lmbda'])} |"
        rows = dict(own["golden"])
        if own["kodak"]:
            rows[f"mean of {own['kodak']['images']} Kodak images"] = own["kodak"]
            rows["the same before rounding to fp16"] = own["kodak"]["float32"]
        for image, values in rows.items():
            lines.append(f"{head} {image} | {_cells(values)} |")
            head = "| | |"
    lines += [
        "",
        "Bits are those of real bitstreams, counted as CompressAI's `eval_model` does; PSNR and "
        "MS-SSIM are of 8-bit RGB, and means are means of the values of the images.",
        "",
        f"Trained for {training['minutes']:.0f} minutes, {training['steps']} steps, on: "
        f"{'; '.join(record['training_data'])}. Never on a Kodak image.",
        f"Licence of the weights: {record['licence']}.",
        "",
        f"Made by (`PHOTOS`: a folder with the training images; the time is on {training['machine']}):",
        "",
        "```",
        record["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _cells(values: dict[str, float]) -> str:
    return f"{values['bpp']:.4f} | {values['psnr-rgb']:.2f} | {values['ms-ssim-rgb']:.4f}"


def trade_off(architecture: str, lmbda: float) -> dict[str, Any]:
    """Metric and lmbda that refinement can use, and the loss of training if it was another."""
    if architecture not in rda.ARCHITECTURES:
        return {"metric": "mse", "lmbda": lmbda, "loss": {}}
    kind = rda.ARCHITECTURES[architecture].distortion
    loss = {"distortion": kind, "lmbda": lmbda}
    if kind == "ms-ssim":
        return {"metric": kind, "lmbda": lmbda, "loss": loss}
    return {"metric": "mse", "lmbda": rda.mse_lmbda(lmbda, kind), "loss": loss}


def results(net: nn.Module, full: nn.Module, kodak: Path | None, title: str) -> dict[str, Any]:
    """Golden results and means over Kodak of one rate.

    Args:
        net: the model as the zoo loads it.
        full: the same before rounding to fp16.
        kodak: the folder; None for golden results alone.
        title: of the progress bar.
    """
    found: dict[str, Any] = {"golden": evaluate(net, zoo.sample_images(), f"{title}, samples"), "kodak": None}
    if kodak is not None:
        images = sorted(kodak.glob("*.png"))
        found["kodak"] = {"images": len(images), **mean(evaluate(net, images, f"{title}, Kodak"))}
        found["kodak"]["float32"] = mean(evaluate(full, images, f"{title}, Kodak before fp16"))
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    facts = read_run(args.run)
    net = joint_model(args.run, facts)
    architecture = facts["architecture"]
    trained = {quality: trade_off(architecture, lmbda) for quality, lmbda in qualities_of(facts).items()}
    gains = {quality: zoo.gain_at(each["lmbda"], each["metric"]) for quality, each in trained.items()}
    lmbdas = [each["lmbda"] for each in trained.values()]

    path = ZOO / "weights" / f"{args.name}.safetensors"
    written = write_weights(path, stored(net, gains))
    record = {
        "name": args.name,
        "architecture": architecture,
        "N": net.N,
        "M": net.M,
        "metric": next(iter(trained.values()))["metric"],
        "lmbda_range": [min(lmbdas), max(lmbdas)],
        **written,
        "wheel": not args.no_wheel,
        "licence": LICENCE,
        "training_data": training_data(),
        "command": portable(facts["command"]),
        "training": {
            "minutes": facts["minutes"],
            "steps": facts["step"],
            "machine": args.machine or facts["machine"],
        },
        "tolerance": TOLERANCE,
        "qualities": {},
    }
    tensors = load_file(path)
    for quality, gain in gains.items():
        shipped = folded(tensors, model_architectures[architecture], gain, quality)
        full = fold(copy.deepcopy(net), gain)
        full.update(force=True)
        record.setdefault("decoder_kmacs_px", kmacs(shipped))  # which no gain changes either
        record["gaussian_tables_crc32"] = zoo.tables_checksum(shipped)  # which no gain changes
        own = {"lmbda": trained[quality]["lmbda"]}
        if trained[quality]["loss"]:
            own["training"] = record["training"] | trained[quality]["loss"]
        own |= results(shipped, full, args.kodak, f"quality {quality}")
        record["qualities"][str(quality)] = own
        print(f"{args.name}, quality {quality}: golden {own['golden']}, Kodak {own['kodak']}")
    update_manifest(record)
    write_text(ZOO / "cards" / f"{args.name}.md", card(record))
    print(f"{path.name}: {written['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"publish.py: {error}")
