# SPDX-License-Identifier: Apache-2.0
"""Compare codecs on the same images: curves, a table with BD-rates, and an HTML report.

    python -m compressai_sga compare                        # on the zoo's sample images
    python -m compressai_sga compare --images KODAK --entries avif mbt2018-mean-small:refine=fast
    python -m compressai_sga compare --images KODAK --entries mbt2018-mean:checkpoint=MINE.pth jpeg2000

In:  a folder of images; entries (their syntax is in `entries`); published points of other codecs
     (--published FILE NAME..., JSON: {codec: {"source": ..., "results": {"bpp": [...], "psnr-rgb": [...]}}}).
Out: in the folder --out
     results.json     values of every image, written at once; the same command goes on from there
     curves/*.json    means of each entry in CompressAI's schema, for `python -m compressai.utils.plot`
     table.md         means, BD-rates against --anchor
     rd-METRIC.png    the curves; published ones are dotted
     report.html      one file: curves, tables, and a viewer that wipes between two decoded pictures
     pictures/        decoded pictures of the first --pictures images; of all for metrics of a whole set

All entries are measured on the same images by the same functions (`trials`). An image that fails is named and
left out of the means of all entries. A further metric, or more pictures, needs decoded pictures; then
everything is coded again. Exit code 1 if something failed, 2 for wrong use, 130 after Ctrl-C. Workers on
other machines need the images and --out at the same paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressai.utils.eval_model.__main__ import collect_images
from PIL import Image

from .. import zoo
from ..endings import ended
from ..errors import SgaError
from ..evaluation.extra_metrics import Measures
from ..files.images import require_folder
from ..metrics import METRICS, SET_METRICS
from ..tasks.records import Record
from ..tasks.tasks import Task, run
from . import arguments, classical, published, report, trials
from .entries import Entry, parse, slug
from .means import QUALITIES
from .page_data import ORIGINAL, Picture

__all__ = ["Comparison", "main", "run_comparison"]

MODELS = ("mbt2018-mean-small", "mbt2018-mean-small:refine=fast")


def find_images(folder: Path | None) -> tuple[Path, list[Path]]:
    """The folder and its images, found in the same way as by CompressAI's evaluation."""
    folder = folder or zoo.sample_images()[0].parent
    if not folder.is_dir():
        raise SgaError(f"there is no folder {folder}; name one with --images")
    images = [Path(path) for path in collect_images(str(folder))]
    if not images:
        raise SgaError(f"{folder} holds no image (*.png, *.jpg, *.webp, ...); name another with --images")
    return folder, images


def find_entries(texts: Sequence[str] | None) -> list[Entry]:
    """The entries asked for; by default the zoo's default model and the formats of this Pillow."""
    if texts is None:
        texts = [name for name in ("jpeg", "jpeg2000", "avif", "jxl") if classical.available(name)]
        texts += MODELS
    found = [parse(text) for text in texts]
    if len({entry.label for entry in found}) < len(found):
        raise SgaError(f"an entry is named twice in {' '.join(texts)}; give all its points after one @")
    return found


class Comparison:
    """A comparison and the tasks that measure it.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.images = find_images(args.images)
        self.entries = find_entries(args.entries)
        file, *codecs = args.published or [""]
        self.published = published.read(Path(file), codecs) if file else {}
        labels = [entry.label for entry in self.entries]
        both = sorted(set(labels) & set(self.published))
        if both:
            raise SgaError(f"--published has a codec called like the entry {both[0]}; rename it in its file")
        if args.anchor not in (None, *labels, *self.published):
            there = ", ".join([*labels, *self.published])
            raise SgaError(f"--anchor: there is no curve {args.anchor!r}; there are {there}")
        self.out: Path = args.out
        names = [name for name in args.metrics.split(",") if name]
        unknown = [name for name in names if name not in {*METRICS, *SET_METRICS}]
        if unknown:
            there = ", ".join([*METRICS, *SET_METRICS])
            raise SgaError(f"--metrics: there is no {', '.join(unknown)}; there are {there}")
        Measures.check(names)
        self.metrics = tuple(name for name in names if name in METRICS)
        self.set_metrics = tuple(name for name in names if name in SET_METRICS)
        self.pictured = set(self.images if self.set_metrics else self.images[: args.pictures])
        self._sha256 = {image: trials.sha256(image) for image in self.images}

    def name(self, image: Path) -> str:
        """Name of an image in the results: its path below the folder."""
        return image.relative_to(self.folder).as_posix()

    def picture(self, entry: Entry, point: str, image: Path) -> Path:
        """Path of the decoded picture."""
        return self.out / "pictures" / entry.slug / slug(point) / self._png(image)

    def original(self, image: Path) -> Path:
        """Path of the original picture: RGB, as CompressAI reads it."""
        path = self.out / "pictures" / "original" / self._png(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(image) as picture:
            picture.convert("RGB").save(path)
        return path

    def _png(self, image: Path) -> str:
        """Only a name whose one suffix is .png is kept: a.jpg becomes a.jpg.png, and a.jpg.png another."""
        return self.name(image) + ("" if image.suffixes == [".png"] else ".png")

    def cell(self, entry: Entry, point: str, image: Path) -> str:
        """Name of a cell in the record."""
        return f"{entry.label} {point} {self.name(image)}"

    def tasks_of_images(self) -> list[Task]:
        """Tasks for every entry, point and image; the entry is the outer loop, because models load slowly."""
        found = []
        for entry in self.entries:
            for point in entry.points:
                identity = trials.identity(entry, point)
                for image in self.images:
                    picture = str(self.picture(entry, point, image)) if image in self.pictured else ""
                    of = {"image": self.name(image), "sha256": self._sha256[image], "metrics": self.metrics}
                    arguments = (entry.label, point, str(image), self.metrics, picture)
                    name = self.cell(entry, point, image)
                    found.append(Task(name, {**identity, **of}, trials.code, arguments))
        return found

    def tasks_of_points(self, known: Mapping[str, Any]) -> list[Task]:
        """Tasks for every point: multiplications, and metrics of the whole set if no image failed."""
        found = []
        large = [image for image in self.images if trials.is_large_enough(image)][:1]
        for entry in self.entries:
            for point in entry.points:
                of, start = trials.identity(entry, point), f"{entry.label} {point}"
                if large and not entry.is_classical:
                    macs = {**of, "sha256": self._sha256[large[0]]}
                    found.append(
                        Task(f"{start}: macs", macs, trials.count_macs, (entry.label, point, str(large[0])))
                    )
                names = [self.cell(entry, point, image) for image in self.images]
                if self.set_metrics and all(name in known for name in names):
                    coded = [known[name]["values"]["picture"] for name in names]
                    sets = {**of, "pictures": coded, "metrics": self.set_metrics}
                    pairs = [(str(image), str(self.picture(entry, point, image))) for image in self.images]
                    found.append(Task(f"{start}: set", sets, trials.whole_set, (pairs, self.set_metrics)))
        return found

    def pictures(self, cells: Mapping[str, Any], rates: Sequence[float], count: int) -> list[Picture]:
        """For the first images the original, and for every entry the picture nearest to each rate."""
        found = []
        for image in self.images[:count]:
            name, coded = self.name(image), []
            for entry in self.entries:
                names = {point: self.cell(entry, point, image) for point in entry.points}
                there = {point: cells[cell]["values"] for point, cell in names.items() if cell in cells}
                nearest = {min(there, key=lambda p: abs(there[p]["bpp"] - rate)) for rate in rates if there}
                for point in [p for p in entry.points if p in nearest]:
                    values = {key: there[point][key] for key in QUALITIES if key in there[point]}
                    path = self.picture(entry, point, image)
                    coded.append(Picture(name, entry.label, point, path, there[point]["bpp"], values))
            if coded:
                found += [Picture(name, ORIGINAL, "", self.original(image), None, {}), *coded]
        return found

    @property
    def wanted(self) -> list[tuple[str, str, str]]:
        """Label, point and image of everything that must be coded."""
        return [
            (entry.label, point, self.name(image))
            for entry in self.entries
            for point in entry.points
            for image in self.images
        ]

    def forget_lost_pictures(self, record: Record) -> None:
        """Forget results whose picture is missing or has changed, so that they are measured again."""
        for entry in self.entries:
            for point in entry.points:
                for image in self.pictured:
                    cell = record.cells.get(self.cell(entry, point, image))
                    path = self.picture(entry, point, image)
                    if cell is None or (
                        path.is_file() and trials.sha256(path) == cell["values"].get("picture")
                    ):
                        continue
                    del record.cells[self.cell(entry, point, image)]


def known(record: Record, tasks: Sequence[Task]) -> dict[str, Any]:
    """The cells of these tasks, without those of earlier images, weights or versions."""
    return {t.name: record.cells[t.name] for t in tasks if record.known(t.name, t.of) is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare what the command line says; gives the exit code."""
    args = arguments.parse(argv)
    return ended(lambda: run_comparison(args))


def run_comparison(args: argparse.Namespace) -> int:
    """The same from parsed arguments."""
    comparison = Comparison(args)
    require_folder(args.out, "--out")
    record = Record(args.out / "results.json")
    comparison.forget_lost_pictures(record)
    how = {"workers": args.workers, "threads": args.threads, "ray": args.ray}
    of_images = comparison.tasks_of_images()
    failures = run(record, of_images, title="images", **how)
    cells = known(record, of_images)
    of_points = comparison.tasks_of_points(cells)
    failures |= run(record, of_points, title="points", **how)
    cells |= known(record, of_points)
    text = report.write(
        comparison.out,
        {"machine": record.machine, "cells": cells},
        entries=comparison.entries,
        wanted=comparison.wanted,
        published=comparison.published,
        anchor=args.anchor,
        title=args.title,
        pictures=comparison.pictures(cells, args.picture_bpp, args.pictures),
        failures=failures,
    )
    print(text)
    return 1 if failures else 0
