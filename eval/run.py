# SPDX-License-Identifier: Apache-2.0
"""Runs an experiment by its name, or writes the documents from the results of all experiments.

    python eval/run.py                      # list the names, and what each experiment measures
    python eval/run.py NAME ...             # measure; `python eval/run.py NAME --help` has the options
    python eval/run.py tables [--check]     # write tables and figures of eval/results into the documents

In:  a name of `EXPERIMENTS` and its options. Out: what the experiment writes, in eval/results and
     eval/figures.
Exit codes: the experiment's own; 2 for an unknown name.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["EXPERIMENTS", "main"]

HERE = Path(__file__).resolve().parent
EXPERIMENTS = {
    "c3": "experiments.c3.measure",
    "c3-kodak": "experiments.c3.kodak",
    "c3-step-time": "experiments.c3.step_time",
    "coders": "experiments.coding.coders",
    "critic": "experiments.realism.critic",
    "diffc": "experiments.diffc.measure",
    "hfd": "experiments.hfd.measure",
    "rda": "experiments.realism.rda",
    "rdp-gaussian": "experiments.realism.rdp_gaussian",
    "refine-curve": "experiments.refinement.curve",
    "refine-methods": "experiments.refinement.methods",
    "reverse-coding": "experiments.reverse_coding.measure",
    "sga-objective": "experiments.sga_plus.objective",
    "sga-plus": "experiments.sga_plus.measure",
    "step-time": "experiments.refinement.step_time",
    "stochastic-encoders": "experiments.realism.stochastic_encoders",
    "tables": "papers.documents",
    "universal": "experiments.coding.universal",
    "zoo-curve": "experiments.refinement.zoo_curve",
}
"""Modules by name; each has `main(argv)`."""


def main(argv: Sequence[str]) -> int:
    """Run one experiment; without a name, list them."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python eval/run.py NAME ...; NAME --help has the options\n")
        for name, module in EXPERIMENTS.items():
            print(f"  {name:<20} {_first_line(module)}")
        return 0
    name, *rest = argv
    if name not in EXPERIMENTS:
        print(f"error: no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    sys.argv[0] = f"{sys.argv[0]} {name}"  # for the usage that argparse prints
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(EXPERIMENTS[name]).main(rest) or 0


def _first_line(module: str) -> str:
    """First line of a module's docstring, without importing the module."""
    path = HERE.joinpath(*module.split(".")).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
