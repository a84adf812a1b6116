# SPDX-License-Identifier: Apache-2.0
"""Tables and figure of eval/experiments/reverse_coding/measure.py, made from its results file.

Parts that were not measured yet are left out. Error bars are two standard errors.

In:  cells. Out: short and full tables in Markdown; a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reporting import Cells, Figure, markdown, part, plt

__all__ = ["dirichlet_means", "figure", "headline", "normal", "short_tables", "tables"]

STYLES = {
    "mrc": ("MRC", "C3", "^"),
    "pfr": ("PFR", "C0", "o"),
    "orc": ("ORC", "C1", "s"),
    "rejection": ("rejection", "C7", "x"),
    "greedy": ("greedy rejection", "C2", "d"),
}


def normal(values: Cells, kl_bits: int, method: str) -> dict[str, Any] | None:
    """Of part normal: N(m, 1) by a method, or the narrower target, "exact"; None where not measured."""
    name = f"narrow KL={kl_bits} pfr exact" if method == "exact" else f"shifted KL={kl_bits} {method}"
    return values.get(name)


def headline(cells: Cells) -> str:
    """The example of the hybrid."""
    ours, plain = (part(cells, "hybrid")[method] for method in ("hybrid", "pfr"))
    each = (
        f"{v['bytes_bits']:.2f} bits and {v['examined']['mean']:.0f} candidates by {name}"
        for v, name in ((ours, "the hybrid"), (plain, "PFR"))
    )
    return f"exact samples, {ours['information_bits']:.2f} bits of information: {', '.join(each)}"


# --- In short ----------------------------------------------------------------------------------------


def short_tables(cells: Cells) -> str:
    """Bits and bias of a shifted Gaussian, and the other parts in a sentence each."""
    makers = {
        "normal": _short_normal,
        "hybrid": _short_hybrid,
        "blocks": _short_blocks,
        "speed": _short_speed,
    }
    return _made(cells, makers)


def _short_normal(values: Cells) -> str:
    """N(m, 1), then exact sampling of the narrower target."""
    rows, exact = [], []
    for kl in dict.fromkeys(v["of"]["kl_bits"] for v in values.values()):
        shifted = {m: normal(values, kl, m) for m in ("mrc", "pfr", "orc")}
        if all(shifted.values()):
            bits = [f"{v['bytes_bits']:.2f}, {v['bias']['mean']:+.2f}" for v in shifted.values()]
            count, bound = shifted["mrc"]["of"]["candidates"], shifted["orc"]["bound_bits"]
            rows.append([f"{kl}", f"{count:,}", *bits, f"{bound:.2f}"])
        if narrow := normal(values, kl, "exact"):
            exact.append((kl, narrow))
    head = "KL, bits | N | MRC: bits, error of the mean | PFR | ORC | bound"
    text = markdown(head, rows)
    if exact:
        std = exact[0][1]["of"]["std"]
        each = "; ".join(f"{v['bytes_bits']:.2f} bits at KL {kl}, p {v['law_p']:.2g}" for kl, v in exact)
        text += f"\n\nN(m, {std}²) by exact PFR, and p of a Kolmogorov-Smirnov test of its law: {each}."
    return text


def _short_hybrid(values: Cells) -> str:
    if not {"hybrid", "pfr"} <= set(values):
        return ""
    each = []
    for name, label in (("hybrid", "hybrid"), ("pfr", "PFR")):
        v, examined = values[name], values[name]["examined"]
        each.append(
            f"{label} {examined['mean']:.0f} ± {examined['error']:.0f} candidates (median "
            f"{examined['median']:.0f}) and {v['bytes_bits']:.2f} bits"
        )
    return f"Hybrid's example, exact samples: {', '.join(each)}."


def _short_blocks(values: Cells) -> str:
    """The setting that codecs use: blocks of 8 bits, 16 times the candidates."""
    v = values.get("orc 8+4")
    if v is None:
        return ""
    of = v["of"]
    return (
        f"A Gaussian of {of['dims']} dimensions and {of['total_bits']:.0f} bits, in "
        f"{v['blocks'] / of['trials']:.0f} blocks by ORC: {v['bytes_bits'] / of['trials']:.0f} bits "
        f"({100 * (v['bytes_bits'] / v['kl_bits'] - 1):+.0f} %), {v['cpu_sec'] / of['trials']:.1f} s of CPU, "
        f"its mean {100 * v['shrinkage']['mean']:.0f} % short."
    )


def _short_speed(values: Cells) -> str:
    each = [
        f"{v['candidates_a_sec_cpu'] / 1e6:.1f}·10⁶ a second of CPU time, "
        f"{v['candidates_a_sec_wall'] / 1e6:.1f}·10⁶ by the wall ({v.get('device', 'one core')}, "
        f"{v['of']['count']} × 2^{v['of']['log2_candidates']} at a time)"
        for v in values.values()
    ]
    return f"Candidates of an 8-dimensional block: {'; '.join(each)}."


# --- In full -----------------------------------------------------------------------------------------


def tables(cells: Cells) -> str:
    """Every number of every part."""
    makers = {
        "normal": normal_table,
        "dirichlet": dirichlet_table,
        "hybrid": hybrid_table,
        "blocks": blocks_table,
        "speed": speed_table,
    }
    return _made(cells, makers)


def _made(cells: Cells, makers: Mapping[str, Callable[[Cells], str]]) -> str:
    """What is made of each part that was measured."""
    made = (make(part(cells, name)) for name, make in makers.items() if part(cells, name))
    return "\n\n".join(filter(None, made))


def normal_table(values: Cells) -> str:
    head = (
        "target | KL, bits | method | N | E log₂ of the number | Zipf code | bytes | bound "
        "| error of the mean, std | std ratio | p of its law"
    )
    rows = []
    for v in values.values():
        of, std = v["of"], v["of"]["std"]
        rows.append(
            [
                "N(m, 1)" if std == 1 else f"N(m, {std}²)",
                f"{of['kl_bits']}",
                of["method"].upper(),
                f"{of['candidates']}" if of["candidates"] else "exact",
                f"{v['log2_number_bits']['mean']:.2f}",
                f"{v['zipf_bits']['mean']:.2f}",
                f"{v['bytes_bits']:.2f}",
                f"{v['bound_bits']:.2f}",
                f"{v['bias']['mean'] / std:+.3f} ± {v['bias']['error'] / std:.3f}",
                f"{v['std']['mean'] / std:.3f}",
                f"{v['law_p']:.2g}",
            ]
        )
    return markdown(head, rows)


def dirichlet_means(values: Cells, method: str, what: int) -> tuple[list[int], np.ndarray]:
    """N, and the mean over the targets of total variation (0) or entropy of the number (1)."""
    counts = [int(count) for count in next(iter(values.values()))[method]]
    return counts, np.mean([[v[method][str(n)][what] for n in counts] for v in values.values()], axis=0)


def dirichlet_table(values: Cells) -> str:
    shown = (1, 16, 64, 256, 1024)
    rows = []
    for method, (label, _, _) in STYLES.items():
        counts, distance = dirichlet_means(values, method, 0)
        entropy = dirichlet_means(values, method, 1)[1]
        cells = [f"{distance[counts.index(n)]:.3f} / {entropy[counts.index(n)]:.2f}" for n in shown]
        rows.append([label, *cells])
    exact = np.mean([v["exact"] for v in values.values()], axis=0)
    rows.append(["exact PFR", *[""] * (len(shown) - 1), f"{exact[0]:.3f} / {exact[1]:.2f}"])
    head = "total variation / entropy of the number in bits | " + " | ".join(f"N = {n}" for n in shown)
    return markdown(head, rows)


def hybrid_table(values: Cells) -> str:
    head = (
        "method | M | candidates, mean | median | most | E log₂ of the number | Zipf code and cell "
        "| bytes | information | p of its law"
    )
    rows = []
    for name, v in values.items():
        examined = v["examined"]
        rows.append(
            [
                name,
                " × ".join(map(str, v["cells"])) or "1",
                f"{examined['mean']:.0f} ± {examined['error']:.0f}",
                f"{examined['median']:.0f}",
                f"{examined['max']:.0f}",
                f"{v['log2_number_bits']['mean']:.2f}",
                f"{v['code_bits']['mean']:.2f}",
                f"{v['bytes_bits']:.2f}",
                f"{v['information_bits']:.2f}",
                f"{v['law_p']:.2g}",
            ]
        )
    return markdown(head, rows)


def blocks_table(values: Cells) -> str:
    head = (
        "method | bits wanted + padding | blocks | KL of a block, mean and most | KL, bits | bytes, bits "
        "| overhead | overhead a block, bits | mean falls short by | std across | candidates | CPU seconds"
    )
    rows = []
    for v in values.values():
        of, over = v["of"], v["bytes_bits"] - v["kl_bits"]
        rows.append(
            [
                of["method"].upper(),
                f"{of['block_bits']} + {of['padding_bits']}",
                f"{v['blocks'] / of['trials']:.0f}",
                f"{v['block_kl_bits']['mean']:.1f}, {v['block_kl_bits']['max']:.1f}",
                f"{v['kl_bits'] / of['trials']:.0f}",
                f"{v['bytes_bits'] / of['trials']:.0f}",
                f"{100 * over / v['kl_bits']:.1f} %",
                f"{over / v['blocks']:.2f}",
                f"{100 * v['shrinkage']['mean']:.1f} ± {100 * v['shrinkage']['error']:.1f} %",
                f"{v['std_across']:.3f}",
                f"{v['candidates'] / of['trials']:.2g}",
                f"{v['cpu_sec'] / of['trials']:.1f}",
            ]
        )
    return markdown(head, rows)


def speed_table(values: Cells) -> str:
    head = "device | blocks × candidates | candidates a second (wall) | (CPU time) | numbers as on the CPU"
    rows = []
    for v in values.values():
        same = v.get("same_numbers")
        rows.append(
            [
                v.get("device", "one core"),
                f"{v['of']['count']} × 2^{v['of']['log2_candidates']}",
                f"{v['candidates_a_sec_wall']:.3g}",
                f"{v['candidates_a_sec_cpu']:.3g}",
                "" if same is None else f"{100 * same:.2f} %",
            ]
        )
    return markdown(head, rows)


# --- The figure --------------------------------------------------------------------------------------


def figure(cells: Cells) -> Figure:
    """Six panels: bits, law, the two of the Dirichlet experiment, the hybrid, blocks."""
    fig, axes = plt.subplots(2, 3, figsize=(14, 8.2), layout="constrained", dpi=120)
    panels = {
        "normal": (_draw_bits, _draw_law),
        "dirichlet": (_draw_distance, _draw_entropy),
        "hybrid": (_draw_hybrid,),
        "blocks": (_draw_blocks,),
    }
    places = iter(axes.flat)
    for name, drawers in panels.items():
        for draw in drawers:
            place = next(places)
            if part(cells, name):
                draw(place, part(cells, name))
                place.grid(alpha=0.3)
            else:
                place.set_axis_off()
    return fig


def _draw_bits(axes, values: Cells) -> None:
    kl = np.linspace(3, 15, 100)
    axes.plot(kl, kl + np.log2(kl + 1) + 4, "k--", lw=1, label="KL + log₂(KL + 1) + 4")
    axes.plot(kl, kl, "k:", lw=1, label="KL")
    for method in ("mrc", "pfr", "orc"):
        label, color, marker = STYLES[method]
        same = [v for k, v in values.items() if k.startswith("shifted") and k.split()[2] == method]
        x = [v["of"]["kl_bits"] for v in same]
        coded = [v["bytes_bits"] for v in same]
        number = [v["log2_number_bits"]["mean"] for v in same]
        what = "log₂ N" if method == "mrc" else "Zipf code"
        axes.plot(x, coded, marker + "-", color=color, lw=0.8, label=f"{label}: bytes ({what})")
        axes.plot(x, number, marker + ":", color=color, lw=0.8, mfc="white", label=f"{label}: E log₂ number")
    axes.set(xlabel="KL divergence, bits", ylabel="bits a sample", ylim=(0, 34))
    axes.set_title("N(m, 1) sent with N(0, 1)")
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def _draw_law(axes, values: Cells) -> None:
    for name, v in values.items():
        target, kl, method, *exact = name.split()
        std, color = v["of"]["std"], STYLES[method][1]
        x, y = v["bias"]["mean"] / std, v["std"]["mean"] / std
        bars = {"xerr": 2 * v["bias"]["error"] / std, "yerr": 2 * v["std"]["error"] / std}
        fill = {"mfc": color} if target == "shifted" else {"mfc": "black" if exact else "white"}
        marker = {"4": "o", "8": "s", "14": "D"}[kl.removeprefix("KL=")]
        axes.errorbar(x, y, **bars, fmt=marker, ms=6, color=color, elinewidth=0.8, **fill)
    axes.axhline(1, color="grey", lw=0.8, ls=":")
    axes.axvline(0, color="grey", lw=0.8, ls=":")
    for label, fmt in (("KL = 4, N = 2⁸", "o"), ("KL = 8, N = 2¹²", "s"), ("KL = 14, N = 2¹⁶", "D")):
        axes.plot([], [], fmt, color="grey", label=label)
    for label, color, fill in (
        ("MRC, N(m, 1)", "C3", "C3"),
        ("PFR, N(m, 1)", "C0", "C0"),
        ("ORC, N(m, 1)", "C1", "C1"),
        ("truncated, N(m, 1/16)", "grey", "white"),
        ("exact PFR, N(m, 1/16)", "C0", "black"),
    ):
        axes.plot([], [], "o", color=color, mfc=fill, label=label)
    axes.set(xlabel="error of the mean, in standard deviations", ylabel="standard deviation / true one")
    axes.set_title("Law of the sample")
    axes.legend(fontsize=8, loc="upper left")


def _draw_means(axes, values: Cells, what: int) -> None:
    line = {"lw": 0.8, "ms": 5, "mfc": "none"}
    for method, (label, color, marker) in STYLES.items():
        axes.plot(*dirichlet_means(values, method, what), marker + "-", color=color, label=label, **line)


def _draw_distance(axes, values: Cells) -> None:
    _draw_means(axes, values, 0)
    floor = np.mean([v["exact"][0] for v in values.values()])
    axes.axhline(floor, color="k", lw=0.8, ls=":", label="exact PFR (number of draws)")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="candidates N", ylabel="total variation", yscale="log")
    axes.set_title("Dirichlet(0.01) on 8192 symbols: law")
    axes.legend(fontsize=8)


def _draw_entropy(axes, values: Cells) -> None:
    _draw_means(axes, values, 1)
    axes.axhline(
        np.mean([v["exact"][1] for v in values.values()]), color="k", lw=0.8, ls=":", label="exact PFR"
    )
    kl = np.mean([v["kl_bits"] for v in values.values()])
    axes.axhline(kl, color="k", lw=0.8, ls="--", label="KL")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="candidates N", ylabel="entropy of the number, bits", ylim=(-0.5, 14))
    axes.set_title("Dirichlet(0.01) on 8192 symbols: rate")
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def _draw_hybrid(axes, values: Cells) -> None:
    for name, color, label in (("hybrid", "C1", "hybrid"), ("pfr", "C0", "plain PFR")):
        if name not in values:
            continue
        v = values[name]
        quantiles = v["examined"]["quantiles"]
        mean, bits = v["examined"]["mean"], v["bytes_bits"]
        text = f"{label}:\n{bits:.2f} bits,\n{mean:.0f} on average"
        axes.plot(quantiles, np.linspace(0, 1, len(quantiles)), color=color, label=text)
        axes.axvline(mean, color=color, lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="candidates until the stop rule fires", ylabel="share of the samples")
    axes.set_title("Exact sampling, two dimensions, 9.65 bits")
    axes.legend(fontsize=8, loc="center right")


def _draw_blocks(axes, values: Cells) -> None:
    same = sorted(
        (v for v in values.values() if v["of"]["method"] == "orc" and v["of"]["padding_bits"] == 4),
        key=lambda v: v["of"]["block_bits"],
    )
    kl = [v["block_kl_bits"]["mean"] for v in same]
    overhead = [100 * (v["bytes_bits"] / v["kl_bits"] - 1) for v in same]
    shortfall = [100 * v["shrinkage"]["mean"] for v in same]
    axes.plot(kl, overhead, "s-", color="C1", label="overhead, of KL")
    axes.plot(kl, shortfall, "v--", color="C4", label="what the mean falls short by, of its shift")
    theory = np.linspace(min(kl), max(kl), 50)
    bound = 100 * (np.log2(theory + 1) + 4) / theory
    axes.plot(theory, bound, "k--", lw=1, label="bound on the overhead")
    axes.set(xlabel="KL divergence of a block, bits", ylabel="percent", yscale="log", ylim=(8, 1500))
    of = same[0]["of"]
    axes.set_title(f"{of['dims']} dimensions, {of['total_bits']:.0f} bits, ORC in blocks")
    time_axes = axes.twinx()
    time_axes.plot(kl, [v["cpu_sec"] / v["of"]["trials"] for v in same], "o:", color="C7", lw=0.8, ms=4)
    time_axes.set(ylabel="CPU seconds (dotted grey)", yscale="log")
    axes.legend(fontsize=8, loc="upper left")
