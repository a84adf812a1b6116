# SPDX-License-Identifier: Apache-2.0
"""The claims of the SGA+ paper, and whether our results agree (Perugachi-Diaz et al. 2024).

The claims are those of the abstracts (arXiv:2401.17789, versions 1 and 3) and of the captions of tables and
figures; the paper's own numbers are not quoted. "Yes" and "no" mean that Student's 95 % interval of the mean
over the images excludes zero on that side. If it contains zero, the images are too few to tell: "undecided".
For a claim that two settings are equally good, "yes" means that the interval contains zero; its standard
error is not smaller than the one between two seeds.

In:  the folder of results, or `Results`. Out: one row for each claim whose part was measured.
Fails as `Results` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.sga_plus import objective
from experiments.sga_plus.comparisons import (
    Classes,
    by_quality,
    class_pairs,
    imitations,
    over_qualities,
    rate_family,
    seed_error,
    shapes,
)
from experiments.sga_plus.plan import LABELS, METHODS, SGA, paper
from experiments.sga_plus.runs import REDUCED, Estimate, Results, bd, difference, estimate, spread
from papers.claim import Row, Verdict
from reporting import Cells, read_cells

__all__ = ["coded", "judged", "rows"]

COMMAND = "python eval/run.py sga-plus --reduced --images KODAK"
WHY: dict[Verdict, str] = {
    "yes": "",
    "no": "the 95 % interval of the mean over the images is on the other side; model, images and objective "
    "are others than the paper's.",
    "undecided": "the 95 % interval of the mean over the images holds zero.",
}


def rows(results: Path) -> list[Row]:
    """Of the reduced form and of the authors' objective; none of what has not been measured."""
    found = []
    if (results / f"{REDUCED}.json").is_file():
        found += judged(Results(read_cells(results, REDUCED)))
    if (results / f"{objective.NAME}.json").is_file():
        found += coded(read_cells(results, objective.NAME))
    return found


def coded(cells: Cells) -> list[Row]:
    """What the authors' objectives gain in real strings."""
    found, gaps = [], objective.gaps(cells)
    for paper_key, name in (("sga", objective.SGA), ("sga+", objective.SGA_PLUS)):
        rows = {row[0]: gap for row, gap in gaps.items() if row[2] == name}
        if not rows:
            continue
        each = [
            f"quality {quality}: loss {gap.change.text()} (information content {gap.own.text()} from that), "
            f"{gap.ours.text()} against our objective"
            for quality, gap in sorted(rows.items())
            if gap.ours is not None
        ]
        verdict = _all_lower(gap.change.sign for gap in rows.values())
        text = f"The objective of {name} gains in real strings, too, of which its authors write none."
        command = f"python eval/run.py {objective.NAME} --images KODAK"
        found.append(Row(text, paper_key, command, "; ".join(each), verdict, WHY[verdict]))
    return found


def judged(results: Results) -> list[Row]:
    """All that can be judged."""
    makers: tuple[Callable[[Results], list[Row]], ...] = (
        _better_than_atanh,
        _best,
        _less_sensitive,
        _interpolation,
        _best_a,
        _three_classes,
        _rates,
    )
    return [row for make in makers for row in make(results)]


def _row(text: str, source: str, ours: str, verdict: Verdict, cause: str = "") -> Row:
    """A row; `cause` is what was found, beside the reason of a verdict that is not "yes"."""
    why = f"{WHY.get(verdict, '')} {cause}".strip() if verdict != "yes" else ""
    return Row(f"{text} ({source}).", "sga+", COMMAND, ours, verdict, why)


def _lower(values: Estimate) -> Verdict:
    """On the claim that these are below zero."""
    return {-1: "yes", 0: "undecided", 1: "no"}[values.sign]


def _all_lower(signs: Iterable[int]) -> Verdict:
    signs = set(signs)
    return "no" if 1 in signs else "yes" if signs == {-1} else "undecided"


def _better_than_atanh(results: Results) -> list[Row]:
    found = []
    for steps in results.steps:
        for method in ("ssl", "linear", "cosine"):
            gap = over_qualities(results, method, "atanh", steps)
            if gap is None:
                continue
            ours = f"loss {gap.text()}"
            delta = bd(results.curve("atanh", steps), results.curve(method, steps))
            signs = by_quality(results, method, "atanh", steps)
            for sign, word in ((-1, "lower"), (1, "HIGHER")):
                if where := [str(q) for q, each in signs.items() if each == sign]:
                    ours += f", {word} at quality {', '.join(where)}"
            if delta is not None:
                ours += f"; BD-rate {delta.rate.value:+.2f} %, BD-PSNR {delta.psnr.value:+.3f} dB"
            source = "abstract, Table 1" if method == "ssl" else "abstract: SGA+ improves on SGA"
            text = f"{LABELS[method]} is better than atanh (SGA), {steps} steps"
            cause = _frozen(results, steps) if method == "ssl" else ""
            found.append(_row(text, source, ours, _lower(gap), cause))
    return found


def _frozen(results: Results, steps: int) -> str:
    """What shows that the paper's a freezes latents too early: low temperatures, and a smaller a."""
    own, said = paper("ssl", results.middle, steps).a, []
    first = min(results.steps)
    ssl, atanh = (results.sweep(method, first, "t_max") for method in ("ssl", "atanh"))
    coldest = min(ssl.keys() & atanh.keys(), default=None)
    if steps > first and coldest is not None:
        gap = estimate(difference(ssl[coldest], atanh[coldest]))
        if gap.sign > 0:
            said.append(f"at T = {coldest:g} it is {gap.text()} against atanh after {first} steps already")
    for each in shapes(results, steps):
        if each.a < own and each.own.sign < 0:
            beside = f" and {each.atanh.text()} against atanh" if each.atanh else ""
            said.append(f"at quality {each.quality} a = {each.a:.3g} is {each.own.text()} against it{beside}")
    return f"a = {own:g} freezes latents too early: {'; '.join(said)}." if said else ""


def _best(results: Results) -> list[Row]:
    found = []
    for steps in results.steps:
        others = {
            m: gap
            for m in METHODS
            if m not in ("ssl", "atanh") and (gap := over_qualities(results, "ssl", m, steps)) is not None
        }
        if not others:
            continue
        verdict = _all_lower(gap.sign for gap in others.values())
        ours = ", ".join(f"{LABELS[m]} {gap.text()}" for m, gap in others.items())
        text = f"SSL is better than STE, noise, linear and cosine, {steps} steps"
        ours = f"its loss minus that of {ours}"
        found.append(_row(text, "abstract, Figures 2a and 3a", ours, verdict))
    return found


def _less_sensitive(results: Results) -> list[Row]:
    found = []
    for field, methods in (("t_max", ("linear", "cosine", "ssl")), ("lr", ("ssl",))):
        for steps in results.steps:
            anchor = results.sweep("atanh", steps, field)
            for method in methods:
                sweep = results.sweep(method, steps, field)
                common = [value for value in sweep if value in anchor]
                if len(common) < 3:
                    continue
                one = spread(sweep[value] for value in common)
                other = spread(anchor[value] for value in common)
                gap = estimate(one - other)
                values = ", ".join(f"{value:g}" for value in common)
                ours = (
                    f"worst minus best of {values}: {LABELS[method]} {one.mean():.2f} %, atanh "
                    f"{other.mean():.2f} %; difference {gap.text()}"
                )
                what = {"t_max": "T_max", "lr": "the learning rate"}[field]
                text = f"{LABELS[method]} is less sensitive to {what} than atanh, {steps} steps"
                source = "abstract, " + {"t_max": "Table 2", "lr": "Table C.3, Figure C.6"}[field]
                found.append(_row(text, source, ours, _lower(gap)))
    return found


def _interpolation(results: Results) -> list[Row]:
    found = []
    for steps in results.steps:
        for each in imitations(results, steps):
            ours = "the same bits on every image" if each.same else f"loss {each.gap.text()}"
            if not each.same:
                ours += f" (standard error between seeds {each.gap.least:.2f})"
            verdict: Verdict = "yes" if each.same or each.gap.sign == 0 else "no"
            text = f"SSL with a = {each.a:.4g} is as good as {LABELS[each.method]}, {steps} steps"
            found.append(_row(text, "Table 4; slopes of the formulas", ours, verdict))
    return found


def _best_a(results: Results) -> list[Row]:
    found = []
    for steps in results.steps:
        sweep = results.sweep("ssl", steps, "a")
        own = results.paper("ssl", steps)
        if len(sweep) < 3 or own is None:
            continue
        least = seed_error(results, steps)
        gaps = {a: estimate(difference(own, run), least) for a, run in sweep.items() if a != own.setting.a}
        verdict = _all_lower(gap.sign for gap in gaps.values())
        ours = "its loss minus that of a = " + ", ".join(f"{a:.3g}: {gap.text()}" for a, gap in gaps.items())
        text = f"a = {own.setting.a:g} is the best of {', '.join(f'{a:.3g}' for a in sweep)}, {steps} steps"
        found.append(_row(text, "the choice of Tables 2 and C.3", ours, verdict))
    return found


def _three_classes(results: Results) -> list[Row]:
    pairs, found = class_pairs(results), []
    for pair in pairs:
        setting = pair.three.setting
        if setting != paper(setting.method, setting.quality, setting.steps):
            continue
        gain = estimate(pair.three.change())
        ours = f"against two classes {pair.gap.text()}; against no refinement {gain.text()}"
        text = f"{LABELS[pair.method]} with three classes refines as well as with two, {setting.steps} steps"
        colder = [p for p in pairs if p.method == pair.method and p.temperature < pair.temperature]
        verdict: Verdict = "yes" if pair.gap.sign < 1 else "no"
        cause = ""
        if verdict == "no" and any(each.gap.sign < 1 for each in colder):
            verdict, cause = "partly", _astray(pair, colder)
        found.append(_row(text, "abstract: can be extended; Table C.5 compares", ours, verdict, cause))
    return found


def _astray(pair: Classes, colder: Iterable[Classes]) -> str:
    """The temperature, at which three classes are worse, beside lower ones."""
    each = ", ".join(
        f"{one.gap.text()} at T = {one.temperature:.2g} after {one.three.setting.steps} steps"
        for one in colder
    )
    return (
        f"the schedule depends on the step alone, and at its last T = {pair.temperature:.2g} "
        f"{100 * pair.astray:.1f} % of the probability is at the neighbours of an integer. With a lower last "
        f"T: {each}."
    )


def _rates(results: Results) -> list[Row]:
    found = []
    for steps in results.steps:
        for method in SGA:
            rates = rate_family(results, method, steps)
            others = [rate for rate in rates if rate.quality != results.middle and rate.above is not None]
            if not others:
                continue
            bpp = [rate.one.mean("bpp_after") for rate in rates]
            signs = {rate.above.sign for rate in others}
            heights = ", ".join(f"{r.above.text(2, ' dB')} at λ = {r.family.lmbda:g}" for r in others)
            ours = (
                f"λ from {rates[0].family.lmbda:g} to {rates[-1].family.lmbda:g} gives {bpp[0]:.3f} to "
                f"{bpp[-1]:.3f} bpp; above the unrefined models' curve by {heights}"
            )
            text = f"{LABELS[method]} moves one model partly along the rate-distortion curve, {steps} steps"
            verdict: Verdict = "yes" if 1 in signs else "no" if signs == {-1} else "undecided"
            source = "abstract of version 1, Figure 3c"
            found.append(_row(text, source, ours, verdict))
    return found
