# SPDX-License-Identifier: Apache-2.0
"""Tables of eval/experiments/sga_plus/measure.py, made from the cells of its results file.

Losses are bpp + lmbda 255^2 MSE of real strings. Changes are in percent of an image's unrefined loss, given
as means over the images with standard errors. BD-rates and BD-PSNRs (pchip) are those of the means over the
images, at the qualities that both curves have. Parts that were not measured are left out.

In:  cells. Out: Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.sga_plus.claims import judged
from experiments.sga_plus.comparisons import class_pairs, imitations, loss_distances, rate_family, shapes
from experiments.sga_plus.plan import LABELS, METHODS, OURS, SEED, SGA, paper
from experiments.sga_plus.runs import Results, Run, bd, difference, estimate, spread
from papers.claim import counts
from papers.claim import table as claims_table
from reporting import Cells, markdown

__all__ = ["headline", "tables"]

AT = (0.0, 0.2, 0.5, 1.0)  # of the steps, in the table of the losses on the way


def tables(cells: Cells, parts: Sequence[str] | None = None) -> str:
    """Tables, as Markdown.

    Args:
        cells: of a results file.
        parts: "what", "claims", and those of `plan`, without headings; None: all, with headings.
    """
    if not cells:
        return "nothing was measured yet"
    results = Results(cells)
    made = {part: make(results) for part, (_, make) in _PARTS.items() if parts is None or part in parts}
    if parts is not None:
        return "\n\n".join(made[part] for part in parts if made[part])
    texts = {_PARTS[part][0]: text for part, text in made.items() if text}
    return "\n\n".join(f"#### {title}\n{text}" if title else text for title, text in texts.items())


def headline(cells: Cells) -> str:
    """The paper's method against that of Yang et al."""
    results = Results(cells)
    gaps = {n: bd(results.curve("atanh", n), results.curve("ssl", n)) for n in results.steps}
    each = ", ".join(f"{gap.rate.value:+.2f} % after {n} steps" for n, gap in gaps.items())
    return f"BD-rate of SSL against atanh (SGA), the papers' settings: {each}"


def _what(results: Results) -> str:
    where = f"centre crops of {results.crop} px" if results.crop else "whole images"
    minutes = sum(run.cpu_seconds for run in results.runs.values()) / 60
    left_out = f" Incomplete and left out: {', '.join(results.left_out)}." if results.left_out else ""
    return (
        f"`{results.model}`, {results.images} images ({where}), real bitstreams; all parts but the curves at "
        f"quality {results.middle}. Settings are the papers' unless they are named. "
        f"{minutes:.1f} minutes of processor time.{left_out}"
    )


def _claims(results: Results) -> str:
    rows = judged(results)
    return f"{counts(rows)}\n\n{claims_table(rows)}" if rows else ""


# --- Curves ------------------------------------------------------------------------------------------


def _name(method: str, steps: int) -> list[str]:
    return [LABELS[method], str(steps)]


def _curves(results: Results) -> str:
    curves = results.curves()
    if not curves:
        return ""
    none = results.curve("none", 0)
    qualities = list(none)
    point = "{:.4f} bpp, {:.2f} dB"
    rows = [
        ["none", "0", *(point.format(r.mean("bpp_before"), r.mean("psnr_db_before")) for r in none.values())]
    ]
    for name, curve in curves.items():
        pairs = {q: point.format(r.mean("bpp_after"), r.mean("psnr_db_after")) for q, r in curve.items()}
        rows.append([*_name(*name), *(pairs.get(q, "") for q in qualities)])
    first = markdown(["method", "steps", *(f"quality {q}" for q in qualities)], rows)
    head = [
        "method",
        "steps",
        *(f"loss, quality {q}" for q in qualities),
        "BD-rate against none (overlap)",
        "BD-PSNR",
        "BD-rate against atanh (overlap)",
        "BD-PSNR",
        "BD-rate of single images against atanh",
        "CPU s an image",
    ]
    rows = []
    for (method, steps), curve in curves.items():
        changes = {q: estimate(run.change()).text(1) for q, run in curve.items()}
        anchor = min(results.steps) if method in OURS else steps
        seconds = np.mean([run.cpu_seconds / len(run.images) for run in curve.values()])
        row = [*_name(method, steps), *(changes.get(q, "") for q in qualities)]
        row += _deltas(none, curve, "before")
        row += ["", "", ""] if method == "atanh" else _atanh(results, curve, anchor)
        rows.append([*row, f"{seconds:.1f}"])
    note = (
        "Anchors: the unrefined images, and atanh after as many steps (for ours, after "
        f"{min(results.steps)}). Overlap: the share of the PSNRs of either curve that both have. In brackets "
        "behind the BD-rates of single images: how many of them have curves that rise. Our presets were "
        "chosen on crops of kodim01, 07, 15 and 23, the papers' settings were not."
    )
    return "\n\n".join([first, markdown(head, rows), note, *_against_atanh(results)])


def _against_atanh(results: Results) -> list[str]:
    """Differences of the losses by quality: where the order of the methods holds and where not."""
    rows, qualities = [], list(results.curve("none", 0))
    for (method, steps), curve in results.curves().items():
        anchor = results.curve("atanh", steps)
        if method not in METHODS or method == "atanh" or not set(curve) & set(anchor):
            continue
        gaps = {q: estimate(difference(curve[q], anchor[q])) for q in curve if q in anchor}
        rows.append([*_name(method, steps), *(gaps[q].text() if q in gaps else "" for q in qualities)])
    if not rows:
        return []
    head = ["loss minus that of atanh", "steps", *(f"quality {q}" for q in qualities)]
    return [markdown(head, rows)]


def _deltas(anchor: Mapping[int, Run], curve: Mapping[int, Run], when: str = "after") -> list[str]:
    found = bd(anchor, curve, when)
    if found is None:
        return ["too few points", ""]
    rate = f"{found.rate.value:+.2f} % ({100 * found.rate.overlap:.0f} %)"
    return [rate, f"{found.psnr.value:+.3f} dB"]


def _atanh(results: Results, curve: Mapping[int, Run], steps: int) -> list[str]:
    anchor = results.curve("atanh", steps)
    found = bd(anchor, curve) if anchor else None
    if found is None:
        return ["", "", ""]
    single = f"{found.by_image.text()} ({found.by_image.count})" if found.by_image else ""
    return [*_deltas(anchor, curve), single]


# --- Sensitivities -----------------------------------------------------------------------------------


def _sweeps(results: Results, field: str, methods: Sequence[str], columns: str) -> str:
    """A row a method and budget, a column a value; the lowest of each column in bold."""
    found = {
        (method, steps): sweep
        for steps in results.steps
        for method in methods
        if len(sweep := results.sweep(method, steps, field)) > 1
    }
    if not found:
        return ""
    values = sorted({value for sweep in found.values() for value in sweep})
    lowest = {}
    for steps in results.steps:
        for value in values:
            losses = {
                m: s[value].mean("loss_after") for (m, n), s in found.items() if n == steps and value in s
            }
            if len(losses) > 1:
                lowest[steps, value] = min(losses, key=losses.get)
    rows = []
    for (method, steps), sweep in found.items():
        row = _name(method, steps)
        for value in values:
            if value not in sweep:
                row.append("")
                continue
            run = sweep[value]
            text = f"{run.mean('loss_after'):.4f} ({run.change().mean():+.2f} %)"
            row.append(f"**{text}**" if lowest.get((steps, value)) == method else text)
        rows.append([*row, estimate(spread(sweep.values())).text()])
    return markdown(["method", "steps", *(f"{columns} {v:g}" for v in values), "worst minus best"], rows)


def _tmax(results: Results) -> str:
    table = _sweeps(results, "t_max", SGA, "T_max")
    note = (
        "In bold the lowest loss of each column. The temperature is the smaller one of T_max and "
        "exp(-t/1000), 0.61 after 500 steps: there, T_max up to 0.6 means a constant temperature."
    )
    return f"{table}\n\n{note}" if table else ""


def _lr(results: Results) -> str:
    return _sweeps(results, "lr", METHODS, "rate")


def _a(results: Results) -> str:
    rows, differences = [], []
    for steps in results.steps:
        alike = {each.a: each for each in imitations(results, steps)}
        for a, run in results.sweep("ssl", steps, "a").items():
            row = [f"{a:.4g}", str(steps), f"{run.mean('loss_after'):.4f}", estimate(run.change()).text()]
            if a in alike:
                each = alike[a]
                gap = "none: the same bits" if each.same else each.gap.text()
                row += [LABELS[each.method], f"{each.other.mean('loss_after'):.4f}", gap]
            else:
                row += ["", "", ""]
            rows.append(row)
        one, other = results.paper("ssl", steps), results.paper("ssl", steps, seed=SEED)
        if one is not None and other is not None:
            gap = difference(other, one)
            differences.append(
                f"Another seed of SSL with a = {one.setting.a:g}, {steps} steps: {estimate(gap).text()}; "
                f"single images differ by {np.sqrt(np.mean(gap**2)):.2f} % (root mean square)."
            )
    if len(rows) < 2:
        return ""
    head = ["a", "steps", "loss", "change", "like", "its loss", "difference"]
    t_max = paper("ssl", results.middle, results.steps[0]).t_max
    note = f"All with T_max = {t_max:g} and the same noise."
    return "\n\n".join([markdown(head, rows), " ".join([note, *differences]), *_shapes(results)])


def _shapes(results: Results) -> list[str]:
    """Other a by quality: which one is best depends on the rate."""
    found = [(steps, each) for steps in results.steps for each in shapes(results, steps)]
    if not found:
        return []
    rows = [
        [
            str(each.quality),
            str(steps),
            f"{each.a:.4g}",
            estimate(each.run.change()).text(),
            each.own.text(),
            each.atanh.text() if each.atanh else "",
        ]
        for steps, each in found
    ]
    own = paper("ssl", results.middle, results.steps[0]).a
    head = ["quality", "steps", "a", "change", f"minus a = {own:g}", "minus atanh"]
    return [markdown(head, rows)]


def _classes(results: Results) -> str:
    rows = []
    for pair in class_pairs(results):
        losses = [
            f"{run.mean('loss_after'):.4f} ({run.change().mean():+.2f} %)" for run in (pair.two, pair.three)
        ]
        last = [f"{pair.temperature:.2f}", f"{100 * pair.astray:.1f} %"]
        t_max = f"{pair.three.setting.t_max:g}"
        rows.append([*_name(pair.method, pair.three.setting.steps), t_max, *losses, pair.gap.text(), *last])
    if not rows:
        return ""
    head = ["method", "steps", "T_max", "two classes", "three classes", "three minus two", "last T", "astray"]
    note = (
        "Astray: the probability that three classes, at the last step's temperature, give to the neighbours "
        "of a latent that is an integer."
    )
    return f"{markdown(head, rows)}\n\n{note}"


# --- Losses on the way, several lambda ---------------------------------------------------------------


def _loss(results: Results) -> str:
    rows = []
    for steps in results.steps:
        for method in METHODS:
            run = results.paper(method, steps)
            if run is None or not run.looks:
                continue
            done, relaxed, true = run.on_the_way()
            row = _name(method, steps)
            for share in AT:
                k = int(np.abs(done - share * steps).argmin())
                gap = estimate(100 * (relaxed[k] / true[k] - 1))
                row.append(f"{true[k].mean():.4f}, {gap.text(1)}")
            rows.append(row)
    if not rows:
        return ""
    head = ["method", "steps", *(f"after {100 * share:.0f} %" for share in AT)]
    note = (
        "The true loss, and how much the method's own loss, at the same latents and with its noise, is above "
        "it. On the way the loss is by ideal code length, which is below that of the strings by the ends of "
        "the coder, and of the latents as they are, not of the best so far."
    )
    said = []
    for steps in results.steps:
        distances = loss_distances(results, steps)
        if {"ssl", "atanh"} <= set(distances):
            gap = estimate(distances["ssl"] - distances["atanh"])
            word = {-1: "nearer to", 0: "as far from", 1: "farther from"}[gap.sign]
            named = ", ".join(f"{LABELS[m]} {values.mean():.2f} %" for m, values in distances.items())
            said.append(
                f"After {steps} steps, SSL's own loss was {word} the true one than atanh's by "
                f"{gap.text()}; mean distances on the way: {named}."
            )
    note += " What the paper's Figure 2b says of this was not read, and is not judged."
    return "\n\n".join([markdown(head, rows), note, *said])


def _rates(results: Results) -> str:
    made = []
    for steps in results.steps:
        for method in SGA:
            rates = rate_family(results, method, steps)
            if len(rates) < 2:
                continue
            rows = []
            for rate in rates:
                one, family = rate.one, rate.family
                rows.append(
                    [
                        f"{family.lmbda:g} (quality {rate.quality})",
                        *_point(family, "before"),
                        *_point(family, "after"),
                        *_point(one, "after"),
                        "" if rate.above is None else rate.above.text(2, " dB"),
                        rate.unrefined.text(1),
                        rate.refined.text(1),
                    ]
                )
            head = [
                "λ",
                *("its model: bpp", "PSNR, dB", "refined: bpp", "PSNR, dB"),
                *(f"quality {results.middle} refined for this λ: bpp", "PSNR, dB"),
                "above the unrefined curve",
                *("its loss minus that of the λ's model", "and of that model refined"),
            ]
            made.append(f"{LABELS[method]}, {steps} steps:\n\n{markdown(head, rows)}\n\n{_rate_bd(rates)}")
    return "\n\n".join(made)


def _point(run: Run, when: str) -> list[str]:
    return [f"{run.mean(f'bpp_{when}'):.4f}", f"{run.mean(f'psnr_db_{when}'):.2f}"]


def _rate_bd(rates: Sequence[Any]) -> str:
    one = {rate.quality: rate.one for rate in rates}
    family = {rate.quality: rate.family for rate in rates}
    said = []
    for what, when in (("the models, unrefined", "before"), ("the models, refined", "after")):
        found = bd(family, one, when)
        if found is None:
            said.append(f"against {what}: no common interval, or too few points")
        else:
            said.append(
                f"against {what}: {found.rate.value:+.1f} %, {found.psnr.value:+.2f} dB "
                f"({found.rate.low:.1f} to {found.rate.high:.1f} dB, "
                f"overlap {100 * found.rate.overlap:.0f} %)"
            )
    return f"BD-rate and BD-PSNR of the one model {'; '.join(said)}."


_PARTS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "what": ("", _what),
    "claims": ("Claims", _claims),
    "curves": ("Rate-distortion curves", _curves),
    "tmax": ("T_max, the upper bound of the temperature", _tmax),
    "a": ("SSL's a", _a),
    "lr": ("Learning rate", _lr),
    "classes": ("Two and three classes", _classes),
    "loss": ("The method's loss and the true loss", _loss),
    "rates": ("One model for several λ", _rates),
}
