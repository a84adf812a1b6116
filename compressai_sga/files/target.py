# SPDX-License-Identifier: Apache-2.0
"""A size or a PSNR is wished: the search for the setting that gives it.

    wish = Wish(bpp=0.5)
    found = reach(wish, request, kind.ranges, attempt, pixels)

A `Range` names the field of a request that moves the rate: lmbda of C3 or of a model for all rates, lmbda of
refinement, bpp of DiffC, the quality of a model that has nothing finer. Several ranges are searched one after
the other: first the quality, then with it lmbda of the refinement. Sizes and mean squared errors are nearly
powers of lmbda, so the search is a secant in their logarithms, and between two results on either side of the
wish it is regula falsi, or bisection where that does not move. Where the model itself takes the nearest of
few sizes (DiffC), the search starts at the wish and ends between two of them. Where refinement of the quality
that is nearest does not reach the wish, that of the next one is tried.

In:  what `attempt` measures of whole files. Out: the nearest of them, and whether it is within TOLERANCE: 2 %
of the bytes, or of the mean squared error, which are 0.09 dB.
Fails with ``ValueError`` on a wish out of range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .kinds import Coded, Range, Request

__all__ = ["MOST", "TOLERANCE", "Attempt", "Found", "Wish", "reach", "search"]

TOLERANCE = 0.02
MOST = 8
"""Attempts for one range."""
_DB = 10 / math.log(10)
_OF_REFINEMENT = 0.06  # what it saves at the lmbda of the model
_LONGEST = math.log(16)  # of a step towards values of which nothing is known


class Attempt(NamedTuple):
    """One coded image.

    Args:
        data: of the file.
        coded: what the file holds.
        psnr_db: of the decoded image; None where it was not asked for.
    """

    data: bytes
    coded: Coded
    psnr_db: float | None


@dataclass(frozen=True)
class Wish:
    """What a file is to have: one of the three.

    Args:
        bpp: bits of the whole file per pixel.
        bytes: of the whole file.
        psnr_db: of the decoded image in 8 bits.

    Raises:
        ValueError: none or several are given, or a number that no file has.
    """

    bpp: float | None = None
    bytes: float | None = None
    psnr_db: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("bpp", "bytes", "psnr_db") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} as target; give one of bpp, bytes and PSNR")
        value = getattr(self, given[0])
        if not 0 < value < math.inf:
            raise ValueError(f"a target of {value} {given[0]}: it must be positive and finite")

    def goal(self, pixels: int) -> float:
        """What `value_of` is to be."""
        if self.psnr_db is not None:
            return self.psnr_db / _DB
        return math.log(self.bytes if self.bytes is not None else self.bpp * pixels / 8)

    def value_of(self, attempt: Attempt) -> float:
        """Logarithm of the size, or of the inverse of the mean squared error."""
        return math.log(len(attempt.data)) if self.psnr_db is None else attempt.psnr_db / _DB

    def told(self, attempt: Attempt | None, pixels: int) -> str:
        """The wish, or what an attempt has of it, for people."""
        if self.psnr_db is not None:
            return f"{self.psnr_db if attempt is None else attempt.psnr_db:.2f} dB"
        if self.bytes is not None:
            return f"{self.bytes if attempt is None else len(attempt.data):.0f} bytes"
        return f"{self.bpp if attempt is None else 8 * len(attempt.data) / pixels:.4f} bpp"


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Args:
        attempt: the nearest.
        reached: whether it is within TOLERANCE.
        text: one sentence for people.
        requests: those that were tried, without scouts.
    """

    attempt: Attempt
    reached: bool
    text: str
    requests: tuple[Request, ...]


def reach(
    wish: Wish,
    request: Request,
    ranges: Callable[[Request], Sequence[Range]],
    attempt: Callable[[Request], Attempt],
    pixels: int,
) -> Found:
    """The attempt that is nearest to the wish.

    Args:
        wish: what the file is to have.
        request: everything else.
        ranges: of a request; the last one is searched, after a coarse search in one before it.
        attempt: codes with a request.
        pixels: of the image.
    """
    goal = wish.goal(pixels)
    *coarse, fine = ranges(request)
    fields = [where.field for where in (*coarse, fine)]
    starts = [request]
    for where in coarse:  # the quality; the refinement that follows makes files smaller, and images better
        aim = goal + _OF_REFINEMENT * (1 if wish.psnr_db is None else -1)
        made = _along(where, request, attempt, wish, goal)
        made.sort(key=lambda each: abs(wish.value_of(each[2]) - aim))
        starts = [dataclasses.replace(request, **{where.field: value}) for value, _, _ in made[:2]]

    def missed_by(each: tuple[Request, Attempt]) -> float:
        return abs(wish.value_of(each[1]) - goal)

    tried: list[tuple[Request, Attempt]] = []
    for start in starts:
        fine = ranges(start)[-1]
        if fine.nearest and wish.psnr_db is None:  # but for the file's head, the wish itself
            bpp = float(f"{8 * math.exp(goal) / pixels:.4g}")
            fine = dataclasses.replace(fine, start=min(max(bpp, fine.low), fine.high))
        tried += [each[1:] for each in _along(fine, start, attempt, wish, goal)]
        if missed_by(tried[-1]) <= TOLERANCE:
            break
    asked, nearest = min(tried, key=missed_by)
    reached = missed_by((asked, nearest)) <= TOLERANCE
    wanted, has = wish.told(None, pixels), wish.told(nearest, pixels)
    by = ", ".join(f"{field} {getattr(asked, field):g}" for field in fields)
    if reached:
        text = f"{has} for {wanted}: {by}, after {len(tried)} attempt{'s' * (len(tried) > 1)}"
    else:
        text = f"{wanted} cannot be had within {TOLERANCE:.0%}; the nearest is {has} ({by})"
        results = [wish.value_of(each) for _, each in tried]
        advice = fine.advice if min(results) < goal < max(results) else fine.beyond
        text += f"; {advice}" * bool(advice)
    return Found(nearest, reached, text, tuple(request for request, _ in tried))


def _along(
    where: Range, request: Request, attempt: Callable[[Request], Attempt], wish: Wish, goal: float
) -> list[tuple[float, Request, Attempt]]:
    """What was tried in one range: value, request, attempt."""

    def run(where: Range, changes: Mapping[str, Any]) -> list[tuple[float, Request, Attempt]]:
        made = []

        def measure(value: float) -> float:
            asked = dataclasses.replace(request, **{where.field: value}, **changes)
            if asked.checkpoint is not None:
                path = f"{asked.checkpoint}.{value:g}" if where.keep and not changes else None
                asked = dataclasses.replace(asked, checkpoint=path)
            made.append((value, asked, attempt(asked)))
            return wish.value_of(made[-1][2])

        search(measure, goal, where)
        return made

    if where.scout:
        made = run(where, where.scout)
        if where.only_scout:
            return made
        results = [(value, wish.value_of(each)) for value, _, each in made]
        start = min(results, key=lambda pair: abs(pair[1] - goal))[0]
        where = dataclasses.replace(where, start=start, slope=_slope(results, where.slope))
    return run(where, {})


def search(
    measure: Callable[[float], float], goal: float, where: Range, most: int = MOST
) -> list[tuple[float, float]]:
    """Values that were tried and what they gave, in this order.

    It ends within TOLERANCE of the goal, after `most` values, and where no value is left.

    Args:
        measure: from the value; nearly linear in its logarithm.
        goal: that it is to give.
        where: the values that there are.
        most: how often it may measure.
    """
    tried: list[tuple[float, float]] = []
    value: float | None = where.start
    while value is not None and len(tried) < most:
        tried.append((value, measure(value)))
        if abs(tried[-1][1] - goal) <= TOLERANCE or (where.nearest and _is_between_steps(tried, goal)):
            break
        value = _next(tried, goal, where)
    return tried


def _is_between_steps(tried: Sequence[tuple[float, float]], goal: float) -> bool:
    """Whether a value for the goal gave a size that is known, with one on the other side of the goal."""
    *known, last = (size for _, size in tried)
    return last in known and min(known) < goal < max(known)


def _next(tried: Sequence[tuple[float, float]], goal: float, where: Range) -> float | None:
    """The next value to try; None where nothing is left."""
    rising = math.copysign(1.0, where.slope)
    below = max((pair for pair in tried if pair[1] < goal), key=lambda pair: rising * pair[0], default=None)
    above = min((pair for pair in tried if pair[1] >= goal), key=lambda pair: rising * pair[0], default=None)
    if below is not None and above is not None:
        share = (goal - below[1]) / (above[1] - below[1])
        if len(tried) > 3 and not 0.1 < share < 0.9:
            share = 0.5
        t = math.log(below[0]) + share * math.log(above[0] / below[0])
    else:
        last = tried[-1]
        if len(tried) > 1:
            (v0, g0), (v1, g1) = tried[-2:]
            if abs(math.log(v1 / v0)) > 1 and abs(g1 - g0) < 0.1 * abs(goal - g1):
                return None  # it moves no more
        step = (goal - last[1]) / _slope(tried, where.slope)
        t = math.log(last[0]) + max(-_LONGEST, min(_LONGEST, step))
    known = {value for value, _ in tried}
    if not where.values:
        value = min(max(float(f"{math.exp(t):.4g}"), where.low), where.high)
        return None if value in known else value
    left = [
        value
        for value in where.values
        if value not in known
        and (below is None or rising * (value - below[0]) > 0)
        and (above is None or rising * (above[0] - value) > 0)
    ]
    return min(left, key=lambda value: abs(math.log(value) - t), default=None)


def _slope(tried: Sequence[tuple[float, float]], usual: float) -> float:
    """Of the last two values, but not far from the usual one."""
    if len(tried) > 1:
        (v0, g0), (v1, g1) = tried[-2:]
        return usual * max(0.2, min(5.0, (g1 - g0) / math.log(v1 / v0) / usual))
    return usual
