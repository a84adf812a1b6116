# SPDX-License-Identifier: Apache-2.0
"""Every evaluation that the documents show: its command, its results files, its tables, figures, headline.

A row of `EVALUATIONS` is all that a new evaluation needs here; then its two marker lines, its command and its
figures stand in eval/RESULTS.md under a heading that is the row's title, and `make_tables` does the rest:

    <!-- results:NAME -->
    <!-- /results -->

Whatever a row makes follows from eval/results alone. Pictures are figures that need models or images: the
script draws them, and nobody can say from the results whether they are up to date.

In:  the folder of results. Out: Markdown; figures of matplotlib.
Fails with ``FileNotFoundError`` or ``KeyError`` where something was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from compressai_sga.comparison import published
from compressai_sga.comparison import report as compare_report
from experiments.c3 import report as c3_report
from experiments.coding import coders, universal
from experiments.diffc import images_report as diffc_images_report
from experiments.diffc import report as diffc_report
from experiments.hfd import report as hfd_report
from experiments.realism import critic_report, rda, rdp_gaussian, stochastic_encoders
from experiments.refinement import curve as refine_curve
from experiments.refinement import methods as refine_methods
from experiments.refinement import step_time, zoo_curve
from experiments.reverse_coding import report as samples_report
from experiments.sga_plus import figures as sga_plus_figures
from experiments.sga_plus import plan as sga_plus_plan
from experiments.sga_plus import report as sga_plus_report
from experiments.sga_plus import runs as sga_plus_runs
from papers import findings

__all__ = ["EVALUATIONS", "Evaluation", "readme_summary", "slug", "summary"]


@dataclass(frozen=True)
class Evaluation:
    """One section of eval/RESULTS.md.

    Args:
        title: its heading, and its row in the summaries of eval/RESULTS.md and README.md.
        command: that measures it.
        results: names of its files in eval/results, or patterns.
        blocks: what stands between markers, by name; a function of the folder of results.
        headline: its result in the summaries; None leaves the row out.
        figures: by name of the file in eval/figures without ".png"; drawn from `results`.
        pictures: the same of figures that only the command can draw.
        in_readme: False leaves it out of README.md's summary, which has about ten rows.
    """

    title: str
    command: str
    results: tuple[str, ...]
    blocks: Mapping[str, Callable[[Path], str]]
    headline: Callable[[Path], str] | None = None
    figures: Mapping[str, Callable[[Path], Figure]] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    in_readme: bool = True

    def sources(self, results: Path) -> list[Path]:
        """Its results files."""
        found = [path for name in self.results for path in sorted(results.glob(name))]
        missing = [name for name in self.results if not list(results.glob(name))]
        if missing:
            raise FileNotFoundError(f"no file {', '.join(missing)} in {results}; run `{self.command}`")
        return found


def of_cells(name: str, make: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """A function of the folder of results from one of the cells of a file in it."""
    return lambda results: make(findings.cells(results, name))


# --- What is not a function of cells alone -----------------------------------------------------------


def _step_time(results: Path) -> str:
    content = json.loads((results / "step-time.json").read_text(encoding="utf-8"))
    return step_time.tables(content["cells"], content["machine"])


def _c3(part: str) -> Callable[[Path], str]:
    return of_cells("c3", lambda cells: c3_report.tables(cells, [part]))


def _c3_figure(results: Path) -> Figure:
    return c3_report.figure(findings.cells(results, "c3"), published.points(results))


def _curve_figure(results: Path) -> Figure:
    return refine_curve.figure(refine_curve.read_results(results), refine_curve.title())


SGA_PLUS = "sga-plus-reduced"
COMPARED = "compare-kodak/results.json"
COMPARED_ANCHOR = "jpeg2000"
COMPARED_BESIDE = ("compressai:compressai-mbt2018-mean_mse_cpu", "compressai:vtm", "C3 (Adaptive)")


def _compared(results: Path) -> str:
    content = json.loads((results / COMPARED).read_text(encoding="utf-8"))
    return compare_report.tables(content, COMPARED_ANCHOR, _beside(results))


def _beside(results: Path) -> published.Published:
    points = published.points(results)
    return {name: points[name] for name in COMPARED_BESIDE}


def _compared_means(results: Path) -> compare_report.Means:
    content = json.loads((results / COMPARED).read_text(encoding="utf-8"))
    return compare_report.means(content["cells"], _beside(results))


# --- Headlines ---------------------------------------------------------------------------------------


def _zoo(results: Path) -> str:
    rates = (findings.zoo_bd_rate(results, "mbt2018-mean-small", a) for a in ("JPEG", "JPEG 2000"))
    return (
        "mbt2018-mean-small: BD-rate {:+.1f} % against the published curve of JPEG, {:+.1f} % against "
        "that of JPEG 2000".format(*rates)
    )


def _methods(results: Path) -> str:
    entries = ("best:480", "fast:88", "ssl:200", "ssl-paper:500", "sga-paper:500")
    each = ", ".join(f"{-findings.lowering(results, e):.2f} % `{e.replace(':', '` ')}" for e in entries)
    return f"bpp + λ·255²·MSE by preset and steps: {each}"


def _curve(results: Path) -> str:
    entries = ("fast:88", "ssl:200")
    each = (f"{findings.refined_bd_rate(results, e):+.1f} % `{e.replace(':', '` ')}" for e in entries)
    return f"BD-rate against the unrefined curve: {', '.join(each)}"


def _step(results: Path) -> str:
    return f"{findings.step_ratio(results):.1f} times as fast as the published loop, one thread"


def _coders(results: Path) -> str:
    decoding = findings.coder_speedups(results, "model decompress")
    autoregressive = [decoding[name] for name in ("cheng2020-anchor 3", "mbt2018-small 3")]
    sizes = findings.coder_sizes(results, "constriction-exact").values()
    return (
        f"autoregressive models decode {min(autoregressive):.1f} to {max(autoregressive):.1f} times as fast; "
        f"{min(sizes):+.2f} to {max(sizes):+.2f} % bytes with `constriction-exact`"
    )


def _universal(results: Path) -> str:
    ours, rounding = (
        max(findings.universal_gaps(results, name), key=abs)
        for name in ("mbt2018-mean-uq-small", "mbt2018-mean-small")
    )
    return f"largest gap of test to training loss {ours:+.2f} % (rounding: {rounding:+.1f} %)"


def _samples(results: Path) -> str:
    ours, plain = (findings.hybrid(results, method) for method in ("hybrid", "pfr"))
    each = (
        f"{v['bytes_bits']:.2f} bits and {v['examined']['mean']:.0f} candidates by {name}"
        for v, name in ((ours, "the hybrid"), (plain, "PFR"))
    )
    return f"exact samples, {ours['information_bits']:.2f} bits of information: {', '.join(each)}"


def _rdp(results: Path) -> str:
    of = {(p["dims"], p["rate_bits"]): p for p in findings.rdp(results)}
    one, eight = of[1, 1], of[8, 1]
    return (
        f"1 bit: squared error {one['distortion']['mean']:.3f} with perfect realism (theory "
        f"{one['formula']:.3f}); {eight['bytes_bits'] / 8:.2f} bits a sample are sent in blocks of 8"
    )


def _circle(results: Path) -> str:
    two = findings.circle(results)[2]
    return (
        f"two codes, perfect realism: squared error {two['stochastic']:.3f} with shared randomness, "
        f"{two['deterministic']:.3f} without"
    )


def _c3_headline(results: Path) -> str:
    pairs = findings.c3_crops(results).values()
    ours, theirs = (sum(pair[k]["loss"] for pair in pairs) for k in (0, 1))
    seconds = sum(pair[0]["decode_cpu_seconds"] for pair in pairs) / len(pairs)
    return (
        f"`c3-fast`: MSE + λ·bpp {100 * (ours / theirs - 1):+.1f} % against {c3_report.REFERENCE_NAME}, "
        f"{len(pairs)} crops; decoding {1e3 * seconds:.0f} ms of CPU"
    )


def _rda(results: Path) -> str:
    rows = findings.rda_pictures(results)
    each = ", ".join(f"{name} {rows[name]['psnr_rgb_db']:.2f} dB" for name in _RDA)
    return f"one image at {rows['rda-l2-small']['bpp']:.2f} bpp or a little more: {each}"


_RDA = ("JPEG", "rda-l2-small", "JPEG 2000")


def _hfd(results: Path) -> str:
    first, drawn = (findings.hfd_quality(results, 1, label) for label in ("first", "1.0"))
    return (
        f"same bytes at quality 1: sliced Wasserstein distance "
        f"{100 * (drawn['swd_mean'] / first['swd_mean'] - 1):+.0f} %, PSNR "
        f"{drawn['psnr_db'] - first['psnr_db']:+.2f} dB"
    )


def _compare(results: Path) -> str:
    head, rows, _ = compare_report.bd_table(_compared_means(results), COMPARED_ANCHOR)
    rates = {row[0]: row[1].split(" (")[0] for row in rows}
    names = ("avif", "mbt2018-mean-small", "mbt2018-mean-small:refine=fast")
    return f"BD-rate {head[0]}: {', '.join(f'`{name}` {rates[name]}' for name in names)}"


def _sga_plus(results: Path) -> str:
    found = sga_plus_runs.Results(findings.cells(results, SGA_PLUS))
    gaps = {n: sga_plus_runs.bd(found.curve("atanh", n), found.curve("ssl", n)) for n in found.steps}
    each = ", ".join(f"{gap.rate.value:+.2f} % after {n} steps" for n, gap in gaps.items())
    return f"BD-rate of SSL against atanh (SGA), the papers' settings: {each}"


def _critic(results: Path) -> str:
    found = critic_report.separation(findings.cells(results, "critic"), "blurred, σ = 1.5 px")
    return (
        f"blurred, σ = 1.5 px: U above the original's in {found['u']} of {found['images']}, −log₂ P alone in "
        f"{found['likelihood']}"
    )


def _diffc(results: Path) -> str:
    gains = findings.diffc_gains(results).values()
    return (
        f"Gaussian sources within {findings.gaussian_off(results):.1f} % of theory; on crops DiffC-F "
        f"{min(gains):+.2f} to {max(gains):+.2f} dB above DiffC-A"
    )


# --- The rows, in the order of the documents ---------------------------------------------------------

EVALUATIONS: tuple[Evaluation, ...] = (
    Evaluation(
        "The zoo without refinement, on Kodak",
        "python eval/run.py zoo-curve --kodak KODAK --anchors ANCHORS",
        (published.FILE, *(f"zoo-kodak-{name}.json" for name in zoo_curve.NAMES)),
        {"zoo-kodak": lambda results: zoo_curve.tables(*zoo_curve.read_results(results))},
        _zoo,
        {"zoo-kodak": lambda results: zoo_curve.figure(*zoo_curve.read_results(results))},
        in_readme=False,
    ),
    Evaluation(
        "Codecs compared, on Kodak",
        "python eval/compare.py --images KODAK --out eval/results/compare-kodak --metrics swd "
        "--anchor jpeg2000 --entries jpeg jpeg2000 webp avif jxl bmshj2018-factorized-small "
        "mbt2018-mean-small hfd-small@1-4 mbt2018-mean-small@1,3,5:refine=fast",
        (COMPARED, published.FILE),
        {"compare": _compared},
        _compare,
        {
            f"compare-{name}": lambda results, metric=metric: compare_report.figure(
                _compared_means(results), metric
            )
            for name, metric in (("psnr", "psnr-rgb"), ("ms-ssim", "ms-ssim-rgb"), ("swd", "swd"))
        },
        pictures=("compare-viewer",),
    ),
    Evaluation(
        "Methods and presets at the same model",
        "python eval/run.py refine-methods --images KODAK",
        (findings.METHODS,),
        {"methods": lambda results: refine_methods.table(findings.methods(results))},
        _methods,
        {"refine-methods": lambda results: refine_methods.figure(findings.methods(results))},
    ),
    Evaluation(
        "Rate-distortion curves, unrefined and refined",
        "python eval/run.py refine-curve --images KODAK",
        ("refine-curve-mbt2018-mean-small-crop128-*.json",),
        {"curve": lambda results: refine_curve.table(refine_curve.read_results(results))},
        _curve,
        {"refine-curve": _curve_figure},
    ),
    Evaluation(
        "The claims of SGA+",
        "python eval/run.py sga-plus --reduced --images KODAK",
        (f"{SGA_PLUS}.json",),
        {
            f"sga-plus-{part}": of_cells(
                SGA_PLUS, lambda cells, part=part: sga_plus_report.tables(cells, [part])
            )
            for part in ("what", *sga_plus_plan.PARTS)
        },
        _sga_plus,
        {
            f"{SGA_PLUS}-{part}": of_cells(
                SGA_PLUS, lambda cells, part=part: sga_plus_figures.figure(cells, part)
            )
            for part in sga_plus_plan.PARTS
        },
    ),
    Evaluation(
        "Time of one step",
        "python eval/run.py step-time",
        ("step-time.json",),
        {"step-time": _step_time},
        _step,
        in_readme=False,
    ),
    Evaluation(
        "Entropy coders against stock's `ans`",
        "python eval/run.py coders",
        ("coders.json",),
        {"coders": of_cells("coders", coders.tables)},
        _coders,
    ),
    Evaluation(
        "Training loss and test loss of universally quantised models",
        "python eval/run.py universal --data KODAK",
        ("universal.json",),
        {"universal": of_cells("universal", universal.tables)},
        _universal,
        {"universal": of_cells("universal", universal.figure)},
    ),
    Evaluation(
        "Sent samples: cost and law",
        "python eval/run.py reverse-coding",
        ("samples.json",),
        {
            "samples": of_cells("samples", samples_report.short_tables),
            "samples-full": of_cells("samples", samples_report.tables),
        },
        _samples,
        {"samples": of_cells("samples", samples_report.figure)},
    ),
    Evaluation(
        "A Gaussian source with perfect realism",
        "python eval/run.py rdp-gaussian",
        ("rdp_gaussian.json",),
        {"rdp": of_cells("rdp_gaussian", rdp_gaussian.tables)},
        _rdp,
        {"rdp_gaussian": of_cells("rdp_gaussian", rdp_gaussian.figure)},
        in_readme=False,
    ),
    Evaluation(
        "Stochastic encoders on the circle",
        "python eval/run.py stochastic-encoders",
        ("stochastic_encoders.json",),
        {"circle": of_cells("stochastic_encoders", stochastic_encoders.tables)},
        _circle,
        {"stochastic_encoders": of_cells("stochastic_encoders", stochastic_encoders.figure)},
        in_readme=False,
    ),
    Evaluation(
        "C3 against Cool-Chic, and what its budget buys",
        "python eval/run.py c3",
        ("c3.json", published.FILE),
        {f"c3-{part}": _c3(part) for part in ("crops", "budget", "warm", "whole", "step")},
        _c3_headline,
        {"c3": _c3_figure},
        pictures=("c3-crops",),
    ),
    Evaluation(
        "Rate-distortion autoencoders",
        "python eval/run.py rda --data KODAK",
        ("rda.json",),
        {"rda": of_cells("rda", rda.tables)},
        _rda,
        {
            name: of_cells("rda", lambda cells, name=name: rda.figures(cells)[name])
            for name in ("rda-entropies", "rda-distortions")
        },
        pictures=("rda-pictures",),
        in_readme=False,
    ),
    Evaluation(
        "HFD behind `mbt2018-mean-small`, on Kodak",
        "python eval/run.py hfd",
        ("hfd.json",),
        {"hfd": of_cells("hfd", hfd_report.tables)},
        _hfd,
        {"hfd": of_cells("hfd", hfd_report.figure)},
        pictures=("hfd-crops",),
    ),
    Evaluation(
        "DiffC: against its theory, its channels, and other codecs",
        "python eval/run.py diffc",
        ("diffc.json",),
        {
            "diffc-gaussian": of_cells("diffc", diffc_report.gaussian_tables),
            "diffc-channels": of_cells("diffc", diffc_images_report.channel_tables),
            "diffc-curves": of_cells("diffc", diffc_images_report.curve_tables),
        },
        _diffc,
        {
            "diffc-gaussian": of_cells("diffc", diffc_report.gaussian_figure),
            "diffc-overhead": of_cells("diffc", diffc_images_report.overhead_figure),
            "diffc-curves": of_cells("diffc", diffc_images_report.curves_figure),
        },
        pictures=("diffc-crops",),
    ),
    Evaluation(
        "The universal critic on real images",
        "python eval/run.py critic --data KODAK",
        ("critic.json",),
        {"critic": of_cells("critic", critic_report.tables)},
        _critic,
        {"critic": of_cells("critic", critic_report.figure)},
        in_readme=False,
    ),
)


def summary(results: Path) -> str:
    """The table at the head of eval/RESULTS.md: a row an evaluation."""
    return _rows(results, EVALUATIONS, "")


def readme_summary(results: Path) -> str:
    """The table of README.md."""
    return _rows(results, [row for row in EVALUATIONS if row.in_readme], "eval/RESULTS.md")


def _rows(results: Path, evaluations: Iterable[Evaluation], document: str) -> str:
    lines = ["| what | result | command |", "|---|---|---|"]
    for row in evaluations:
        if row.headline is not None:
            link = f"[{row.title}]({document}#{slug(row.title)})"
            lines.append(f"| {link} | {row.headline(results)} | `{row.command}` |")
    return "\n".join(lines)


def slug(heading: str) -> str:
    """The anchor that Markdown pages give a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
