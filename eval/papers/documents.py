# SPDX-License-Identifier: Apache-2.0
"""Write all tables and figures of the documents from eval/results, or report those that are out of date.

    python eval/run.py tables             # writes README.md, eval/RESULTS.md, eval/README.md, eval/figures
    python eval/run.py tables --redraw    # also figures that are up to date; after a change of the code
    python eval/run.py tables --check     # writes nothing

Everything between the two marker lines of a block is written by the block's function from the results:

    <!-- results:NAME -->
    ...
    <!-- /results -->

Blocks and figures are those of `evaluations`, the summaries, and the claims of eval/README.md. Nothing is
measured, and no model or image is needed. A figure is up to date if it was drawn from the present results
files (`provenance`).

In:  a checkout. Out: the files. On stderr one line for each block or figure that is out of date, missing or
     unknown, and exit code 1 if there is one. Without --check only those remain that the results cannot
     repair: a block without markers, markers without a block, missing results, a picture that only its
     script can draw.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from compressai_sga.tasks.provenance import digest, drawn_from, save_figure
from papers import claims
from papers.evaluations import EVALUATIONS, Evaluation, readme_summary, summary

__all__ = ["DOCUMENTS", "blocks", "check", "write"]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- results:(?P<name>[\w-]+) -->\n(?P<content>.*?)<!-- /results -->", re.S)
MARKER = re.compile(r"<!-- (?:results:[\w-]+|/results) -->")
Makers = dict[str, Callable[[Path], str]]
# Of each document what is made of results, by name of the block.
DOCUMENTS: dict[str, Makers] = {
    "README.md": {"summary": readme_summary},
    "eval/RESULTS.md": {"summary": summary}
    | {name: make for row in EVALUATIONS for name, make in row.blocks.items()},
    "eval/README.md": {"claims": claims.table},
}
# Output of commands that is copied by hand.
BY_HAND = {"README.md": ("example", "tests")}


def blocks(text: str) -> dict[str, str]:
    """The text between the markers of each block, by name.

    Raises:
        ValueError: a marker without its partner, or a name that occurs twice.
    """
    found: dict[str, str] = {}
    for match in BLOCK.finditer(text):
        if MARKER.search(match["content"]):
            raise ValueError(f"the block {match['name']} is not closed; end it with <!-- /results -->")
        if match["name"] in found:
            raise ValueError(f"the block {match['name']} stands there twice; remove one")
        found[match["name"]] = match["content"]
    if len(MARKER.findall(text)) != 2 * len(found):
        raise ValueError(
            "a marker has no partner; a block is <!-- results:NAME -->, its lines, <!-- /results -->"
        )
    return found


def made(results: Path, makers: Makers) -> tuple[dict[str, str], list[str]]:
    """The content of each block, and one line about each block that cannot be made."""
    contents, failures = {}, []
    for name, make in makers.items():
        try:
            contents[name] = make(results).rstrip("\n") + "\n"
        except Exception as error:  # whatever a results file lacks, the others are made
            failures.append(f"{name} cannot be made: {type(error).__name__}: {error}")
    return contents, failures


def unmendable(document: str, found: dict[str, str]) -> Iterator[str]:
    """Blocks without markers, markers without a block."""
    wanted = {*DOCUMENTS[document], *BY_HAND.get(document, ())}
    for name in sorted(wanted - set(found)):
        yield f"{name} is missing; add the lines <!-- results:{name} --> and <!-- /results -->"
    for name in sorted(set(found) - wanted):
        yield f"{name} is unknown; remove it, or add it to eval/papers/evaluations.py"


def check(root: Path = ROOT) -> list[str]:
    """One line about each block or figure that does not agree with the results."""
    results, problems = root / "eval" / "results", []
    for document, makers in DOCUMENTS.items():
        try:
            found = blocks((root / document).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{document}: {error}")
            continue
        contents, failures = made(results, makers)
        stale = [f"{n} is out of date" for n, text in contents.items() if n in found and found[n] != text]
        problems += [f"{document}: {line}" for line in (*unmendable(document, found), *failures, *stale)]
    return problems + check_figures(root)


def check_figures(root: Path) -> list[str]:
    """One line about each figure that does not agree with the results."""
    folder, problems = root / "eval" / "figures", []
    known = set()
    for row in EVALUATIONS:
        known |= {*row.figures, *row.pictures}
        try:
            problems += [f"eval/figures: {line}" for line in stale_figures(row, root).values()]
        except FileNotFoundError as error:
            problems.append(f"eval/results: {error}")
        for name in row.pictures:
            if not (folder / f"{name}.png").is_file():
                problems.append(f"eval/figures: {name}.png is missing; run `{row.command}`")
    unknown = sorted(path.name for path in folder.glob("*.png") if path.stem not in known)
    return problems + [
        f"eval/figures: {name} is of no evaluation in eval/papers/evaluations.py" for name in unknown
    ]


def stale_figures(row: Evaluation, root: Path) -> dict[str, str]:
    """What is wrong with the figures that are drawn from an evaluation's results, by name."""
    wanted, found = digest(row.sources(root / "eval" / "results")), {}
    for name in row.figures:
        path = root / "eval" / "figures" / f"{name}.png"
        if not path.is_file():
            found[name] = f"{name}.png is missing"
        elif drawn_from(path) != wanted:
            found[name] = f"{name}.png is out of date"
    return found


def write(root: Path = ROOT, *, redraw: bool = False) -> None:
    """Write documents and figures from the results, as far as possible.

    Args:
        root: of the checkout.
        redraw: also draw the figures that are up to date.
    """
    results = root / "eval" / "results"
    for document, makers in DOCUMENTS.items():
        path = root / document
        text = path.read_text(encoding="utf-8")
        try:
            blocks(text)
        except ValueError:
            continue  # what is wrong is said by `check`
        contents, _ = made(results, makers)

        def renewed(match: re.Match[str], contents: dict[str, str] = contents) -> str:
            name = match["name"]
            return f"<!-- results:{name} -->\n{contents.get(name, match['content'])}<!-- /results -->"

        new = BLOCK.sub(renewed, text)
        if new != text:
            path.write_text(new, encoding="utf-8", newline="\n")
            print(f"{document} is written")
    for row in EVALUATIONS:
        try:
            for name in row.figures if redraw else stale_figures(row, root):
                path = root / "eval" / "figures" / f"{name}.png"
                save_figure(row.figures[name](results), path, row.sources(results))
                print(f"eval/figures/{name}.png is drawn")
        except (OSError, KeyError, ValueError) as error:
            print(f"the figures of {row.title!r} cannot be drawn: {error}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    parser.add_argument("--redraw", action="store_true", help="draw all figures again")
    args = parser.parse_args(argv)
    if not args.check:
        write(redraw=args.redraw)
    problems = check()
    for line in problems:
        print(line, file=sys.stderr)
    if problems and args.check:
        print("write what can be made of the results: python eval/run.py tables", file=sys.stderr)
    return 1 if problems else 0
