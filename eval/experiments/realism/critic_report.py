# SPDX-License-Identifier: Apache-2.0
"""Tables and figure of `critic`, from its results, and the values that are known in closed form.

Each variant of a crop is compared with the original of the crop: the tables count the images with a larger U,
and those with a larger -log2 P, the criterion of likelihood alone. "Seen by" names the part of the mixture
with the fewest bits.

In:  cells of eval/results/critic.json. Out: Markdown; a figure of matplotlib.
Fails with ``KeyError`` if a part was not measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressai_sga.tasks.records import mean_error
from reporting import Cells, Figure, cells_of, markdown, plt

__all__ = ["LAW", "PARTS", "WEIGHTS", "figure", "gaussians", "headline", "images", "separation", "tables"]

# A finite alphabet: the law P of real items, and the parts of S with their weights.
LAW = (0.5, 0.25, 0.15, 0.1)
PARTS = (LAW, (0.25,) * 4, (0.1, 0.1, 0.1, 0.7))
WEIGHTS = (0.5, 0.25, 0.25)
# Gaussians: P = N(0, I) of 16 numbers, S an equal mixture of N(0, s^2 I).
DIMS, SCALES = 16, (1.0, 0.5, 0.25, 0.1)
TAU = 0.05  # images of a batch lie around one theta ~ N(0, 1), within this
MIXED = ("WebP", "two-part")  # the parts of the mixture, by their columns


def gaussian_bits(model: float, data: float) -> float:
    """E -log2 of the density N(0, model^2 I) for data N(0, data^2 I)."""
    return DIMS / 2 * (math.log2(2 * math.pi * model**2) + (data / model) ** 2 / math.log(2))


def gaussians() -> dict[str, Any]:
    """Blurred data and an empty image under N(0, I); a batch that has collapsed.

    U is at least log2 w + log2 Q / P for every part Q, of weight w = 1 / 4. Of n images around one theta,
    U = n/2 log2(1 + tau^2) - [(n - 1) log2 tau^2 + log2(tau^2 + n)] / 2 on average.
    """
    single = {}
    for name, data in (("real", 1.0), ("blurred", 0.5), ("empty", 0.0)):
        p_bits = gaussian_bits(1.0, data)
        best = max(p_bits - gaussian_bits(scale, data) - math.log2(len(SCALES)) for scale in SCALES)
        single[name] = {"p_bits": p_bits, "u_least": best}
    batch = {
        str(n): n / 2 * math.log2(1 + TAU**2) - ((n - 1) * math.log2(TAU**2) + math.log2(TAU**2 + n)) / 2
        for n in (1, 2, 4, 8)
    }
    return {"gaussian": single, "collapsed": batch}


def images(cells: Cells) -> list[dict[str, dict[str, float]]]:
    """{variant: bits a pixel by model and code} of every image."""
    return [cell["values"] for cell in cells_of(cells, "image").values()]


def u(row: Mapping[str, float], code: str = "mixture") -> float:
    """Bits a pixel that the code saves against the model."""
    return row["model"] - row[code]


def separation(cells: Cells, variant: str) -> dict[str, Any]:
    """A variant against the originals, paired by image.

    Returns:
        images: how many; u, likelihood: in how many U, or -log2 P, is above the original's; difference: of U,
        bits a pixel, mean and standard error; seen_by: the part of the mixture with the fewest bits, mostly.
    """
    pairs = [(image[variant], image["original"]) for image in images(cells) if variant in image]
    parts = Counter(min(MIXED, key=lambda part, row=row: row[part]) for row, _ in pairs)
    return {
        "images": len(pairs),
        "u": sum(u(ours) > u(real) for ours, real in pairs),
        "likelihood": sum(ours["model"] > real["model"] for ours, real in pairs),
        "difference": mean_error(np.array([u(ours) - u(real) for ours, real in pairs])),
        "seen_by": parts.most_common(1)[0][0],
    }


def headline(cells: Cells) -> str:
    """What the critic sees and likelihood does not."""
    found = separation(cells, "blurred, σ = 1.5 px")
    return (
        f"blurred, σ = 1.5 px: U above the original's in {found['u']} of {found['images']}, −log₂ P alone in "
        f"{found['likelihood']}"
    )


def tables(cells: Cells) -> str:
    """Markdown: variants, codes, batches, what is exact."""
    parts = [_variant_table(cells), _code_table(cells)]
    parts += [_batch_table(cells)] if "batches" in cells else []
    return "\n\n".join([*parts, _exact_tables(cells["exact"]["values"])])


def _mean(cells: Cells, variant: str, key: str) -> float:
    return float(np.mean([image[variant][key] for image in images(cells) if variant in image]))


def _variant_table(cells: Cells) -> str:
    head = (
        "variant | PSNR, dB | −log₂ P, bpp | U, bpp | U − U of the original | U larger | −log₂ P larger "
        "| seen by"
    )
    lines = []
    for variant in images(cells)[0]:
        model, mixture = _mean(cells, variant, "model"), _mean(cells, variant, "mixture")
        numbers = f"{model:.2f} | {model - mixture:+.3f}"
        if variant == "original":
            lines.append(f"{variant} | | {numbers} | | | |")
            continue
        found = separation(cells, variant)
        gap, of = found["difference"], found["images"]
        lines.append(
            f"{variant} | {_mean(cells, variant, 'psnr_db'):.1f} | {numbers} | {gap['mean']:+.3f} ± "
            f"{gap['error']:.3f} | {found['u']} of {of} | {found['likelihood']} of {of} "
            f"| {found['seen_by']}"
        )
    return markdown(head, lines)


def _code_table(cells: Cells) -> str:
    codes = [key for key in images(cells)[0]["original"] if key not in ("psnr_db", "model")]
    rows = []
    for variant in images(cells)[0]:
        model = _mean(cells, variant, "model")
        rows.append([variant, *(f"{model - _mean(cells, variant, code):+.2f}" for code in codes)])
    return markdown(["U against", *codes], rows)


def _batch_table(cells: Cells) -> str:
    values = cells["batches"]["values"]
    sizes = sorted({int(name.split()[0]) for name in values})
    head = (
        "images | U of the batch, bpp: different images | copies of one | sum of their own U: different "
        "| copies"
    )
    rows = []
    for size in sizes:
        pair = [values[f"{size} {name}"] for name in ("different", "copies")]
        rows.append([str(size), *(f"{row[key]:+.2f}" for key in ("batch", "alone") for row in pair)])
    return markdown(head, rows)


def _exact_tables(values: Mapping[str, Any]) -> str:
    names = {"real": "N(0, I)", "blurred": "blurred: N(0, I / 4)", "empty": "all zero"}
    gaussian = {name: values["gaussian"][key] for key, name in names.items()}
    rows = [[name, f"{row['p_bits']:.1f}", f"{row['u_least']:+.1f}"] for name, row in gaussian.items()]
    batch = ", ".join(f"{bits:+.1f} for {n}" for n, bits in values["collapsed"].items())
    tails = ", ".join(f"P(U ≥ {t}) = {p:g}" for t, p in values["tail"].items())
    return (
        f"{markdown('N(0, I) of 16 numbers | −log₂ P, bits | U at least, bits', rows)}\n\n"
        f"On a finite alphabet Σ P·2^U = {values['expectation']:.6f}; {tails}. Images around one "
        f"θ ~ N(0, 1), within {TAU}, mean U of the batch in bits: {batch}."
    )


def figure(cells: Cells) -> Figure:
    """A dot an image: U, and -log2 P, of each variant less the original's; right of it the share above 0."""
    variants = [name for name in images(cells)[0] if name != "original"]
    fig, panels = plt.subplots(1, 2, figsize=(11, 5.5), sharey=True, layout="constrained")
    titles = (
        "U − U of the original: > 0 is found unrealistic",
        "−log₂ P less the original's: likelihood alone",
    )
    for axes, title, value in zip(panels, titles, (u, lambda row: row["model"])):
        for height, variant in enumerate(variants):
            pairs = [(i[variant], i["original"]) for i in images(cells) if variant in i]
            points = [value(ours) - value(real) for ours, real in pairs]
            shift = np.linspace(-0.25, 0.25, len(points))
            found = np.mean(np.array(points) > 0)
            colour = plt.cm.coolwarm(float(found))
            axes.plot(points, height + shift, ".", color=colour, ms=5)
            axes.annotate(
                f"{100 * found:.0f} %", (1.01, height), xycoords=("axes fraction", "data"), fontsize=8
            )
        axes.annotate("> 0 in", (1.01, -0.7), xycoords=("axes fraction", "data"), fontsize=8)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.margins(x=0.06)
        axes.set(title=title, xlabel="bits per pixel")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(variants)), variants)
    panels[0].invert_yaxis()
    return fig
