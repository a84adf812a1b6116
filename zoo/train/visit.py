# SPDX-License-Identifier: Apache-2.0
"""A visit to a rented GPU behind a slow link: what goes there, training within a budget, what comes back.

    python zoo/train/visit.py pack --data PHOTOS --out parcel        # here: parts of at most 50 MB
    python zoo/train/visit.py unpack parcel --data photos            # there; installs the wheels as well
    python zoo/train/visit.py train --minutes 9 --out results --data photos \\
        --job "a1 --arch mbt2018-mean -N 192 -M 320 --max-minutes 12" --job "..."
    python zoo/train/visit.py join results --out states              # here: fp16 weights of each job

pack:   photographs, the held-out ones first, then others in random order as far as they fit. A photograph is
        stored as it is or as lossless WebP, whichever is smaller, under its own name. In the first part are
        also the wheels of packages that such machines lack, one of them built here from its sources.
train:  each job is a `train.py` in a process of its own, all on one GPU. Its run is `runs/NAME`, so the same
        command goes on where the last one was stopped. While they train, their fp16 weights (`--state`) are
        cut into shards of at most 16 MiB in OUT whenever there are new ones, and OUT/table.md says what
        they have reached. When the minutes are over, jobs are interrupted, which makes them save.
join:   puts shards together, and refuses those that do not belong together. A state is what `train.py
        --state` goes on from, also on another machine, and `--init-from` and `publish.py` can read.

Fails with exit code 2 for wrong options, 1 where a job failed; the others are not affected.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from crops import photographs
from run_files import end_with_parent, replace

PART_BYTES = 50_000_000
SHARD_BYTES = 16 * 2**20
WHEELS = ("compressai==1.2.8", "constriction", "pytorch_msssim")
POLL_SECONDS = 5.0
SAVING_SECONDS = 45.0  # of the minutes: jobs save and export in them
TRAIN = Path(__file__).with_name("train.py")


class Process(Protocol):
    """The part of `subprocess.Popen` that is used."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...

    def wait(self) -> int: ...


# --- What goes there ---------------------------------------------------------------------------------


def smaller(path: Path) -> bytes:
    """The bytes of an image file, or of the same pixels as lossless WebP if these are fewer."""
    own = path.read_bytes()
    if len(own) > PART_BYTES:
        raise ValueError(f"{path} has {len(own)} bytes; a part holds {PART_BYTES}")
    with Image.open(path) as image:
        if path.suffix.lower() == ".webp" or image.mode not in ("RGB", "L"):
            return own
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="webp", lossless=True, method=4)
    return min(own, buffer.getvalue(), key=len)


def pack(data: Path, out: Path, parts: int, wheels: list[Path], seed: int = 0) -> list[int]:
    """Write OUT/part-1.tar and so on; returns the number of photographs in each.

    Args:
        data: folder of photographs.
        out: folder of the parts.
        parts: how many there may be.
        wheels: go into the first part.
        seed: of the order in which photographs are taken.
    """
    rest = photographs(data)
    random.Random(seed).shuffle(rest)
    queue = [(f"photos/{p.relative_to(data)}", p) for p in (*photographs(data, held=True), *rest)]
    out.mkdir(parents=True, exist_ok=True)
    counts, waiting = [], list(reversed(queue))
    for number in range(1, parts + 1):
        size, count = 20 * 512, 0  # the end of an archive
        with tarfile.open(out / f"part-{number}.tar", "w") as archive:
            for wheel in wheels if number == 1 else ():
                size += _add(archive, f"wheels/{wheel.name}", wheel.read_bytes())
            while waiting:
                name, path = waiting[-1]
                content = smaller(path)
                if size + _room(content) > PART_BYTES:
                    break
                size += _add(archive, name, content)
                waiting.pop()
                count += 1
        counts.append(count)
    return counts


def _room(content: bytes) -> int:
    return 3 * 512 + -(-len(content) // 512) * 512


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
    return _room(content)


def make_wheels(folder: Path) -> list[Path]:
    """The wheels of `WHEELS` for this Python; pip builds those that are published as sources only."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), *WHEELS]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def unpack(parcel: Path, data: Path, install: bool = True) -> int:
    """Photographs of all parts into `data`, wheels into the environment; returns how many photographs."""
    count = 0
    for part in sorted(parcel.glob("part-*.tar")):
        with tarfile.open(part) as archive:
            archive.extractall(data.parent / f"{data.name}.parts", filter="data")
    extracted = data.parent / f"{data.name}.parts"
    for path in sorted((extracted / "photos").rglob("*")):
        if path.is_file():
            target = data / path.relative_to(extracted / "photos")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            count += 1
    wheels = sorted((extracted / "wheels").glob("*.whl"))
    if install and wheels:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *map(str, wheels)]
        subprocess.run(command, check=True)
    return count


# --- Training ----------------------------------------------------------------------------------------


def start_process(arguments: list[str]) -> Process:
    """`train.py`, which saves itself and ends when this process ends, however that comes.

    It has its own session, so that Ctrl-C in a terminal does not reach it a second time.
    """
    command = [sys.executable, str(TRAIN), *arguments]
    return subprocess.Popen(command, preexec_fn=end_with_parent, start_new_session=True)


def train(
    jobs: dict[str, list[str]],
    *,
    data: Path,
    out: Path,
    minutes: float,
    device: str = "cuda",
    start: Callable[[list[str]], Process] = start_process,
) -> list[str]:
    """Run the jobs side by side until they end or the minutes are over; returns those that failed.

    Args:
        jobs: options of `train.py` by name.
        data: folder of photographs.
        out: folder of shards and table.
        minutes: of all of it; what it takes to save is part of them.
        device: of all jobs.
        start: starts `train.py` with arguments.
    """
    end = time.monotonic() + 60 * minutes - SAVING_SECONDS
    states = {name: Path("runs") / name / "state.safetensors" for name in jobs}
    running = {}
    for name, options in jobs.items():
        more = ["--data", str(data), "--out", str(states[name].parent), "--state", str(states[name])]
        running[name] = start([*options, *more, "--device", device])
    written: dict[str, int] = {}
    stopped: set[str] = set()
    while True:
        if time.monotonic() >= end:
            late = {name: process for name, process in running.items() if process.poll() is None}
            for process in late.values():
                process.send_signal(signal.SIGINT)
            for process in late.values():
                process.wait()
            stopped |= set(late)
        done = all(process.poll() is not None for process in running.values())
        for name, state in states.items():
            if state.exists() and written.get(name) != (stamp := state.stat().st_mtime_ns):
                shard(state, out, name)
                written[name] = stamp
        text = table(jobs)
        replace(out / "table.md", lambda path, text=text: path.write_text(text, encoding="utf-8"))
        if done:
            print(text)
            return [name for name, process in running.items() if process.poll() != 0 and name not in stopped]
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


def table(jobs: dict[str, list[str]]) -> str:
    """What each job has reached at its last check, as Markdown."""
    lines = ["| job | minutes | steps | score | machine | command |", "|---|---|---|---|---|---|"]
    for name in jobs:
        path = Path("runs") / name / "run.json"
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        score = f"{run['score']:.4f}" if "score" in run else ""
        cells = [name, run.get("minutes", ""), run.get("step", ""), score, run.get("machine", "")]
        lines.append(f"| {' | '.join(map(str, cells))} | `{shlex.join(jobs[name])}` |")
    return "\n".join(lines) + "\n"


# --- What comes back ---------------------------------------------------------------------------------


def shard(state: Path, out: Path, name: str) -> None:
    """Cut a file into OUT/NAME.I-OF-N.DIGEST; older shards of that name go."""
    content = state.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    pieces = [content[i : i + SHARD_BYTES] for i in range(0, len(content), SHARD_BYTES)]
    old = set(out.glob(f"{name}.*-of-*.*"))
    for number, piece in enumerate(pieces, 1):
        path = out / f"{name}.{number}-of-{len(pieces)}.{digest}"
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(piece)
        old.discard(path)
    for path in old:
        path.unlink()


def join(shards: Path, out: Path) -> list[Path]:
    """The files of which a folder holds all shards, as OUT/NAME.safetensors.

    Raises:
        ValueError: a shard is missing, or the content is not what was cut.
    """
    found: dict[tuple[str, str], dict[int, Path]] = {}
    totals: dict[tuple[str, str], int] = {}
    for path in sorted(shards.glob("*.*-of-*.*")):
        name, place, digest = path.name.rsplit(".", 2)
        number, total = map(int, place.split("-of-"))
        found.setdefault((name, digest), {})[number] = path
        totals[name, digest] = total
    made = []
    for (name, digest), pieces in found.items():
        total = totals[name, digest]
        if missing := set(range(1, total + 1)) - set(pieces):
            raise ValueError(f"shards {sorted(missing)} of {total} of {name} are missing; fetch all of them")
        content = b"".join(pieces[number].read_bytes() for number in range(1, total + 1))
        if hashlib.sha256(content).hexdigest()[:16] != digest:
            raise ValueError(f"the shards of {name} are not those of one state; fetch them again")
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.safetensors"
        path.write_bytes(content)
        made.append(path)
    return made


def parse_jobs(texts: list[str]) -> dict[str, list[str]]:
    """Options of train.py by name, of "NAME --arch ..."."""
    jobs: dict[str, list[str]] = {}
    for text in texts:
        name, *options = shlex.split(text)
        if not options or name.startswith("-") or "/" in name or "." in name:
            raise ValueError(
                f"--job {text!r} must be a name, without dots and slashes, and options of train.py"
            )
        if name in jobs:
            raise ValueError(f"two jobs are called {name}; give each a name of its own")
        jobs[name] = options
    return jobs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="photographs and wheels into parts")
    one.add_argument("--data", type=Path, required=True, help="folder of photographs")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--parts", type=int, default=2, help=f"of at most {PART_BYTES // 10**6} MB each")
    one.add_argument("--no-wheels", action="store_true")
    one = commands.add_parser("unpack", help="parts into photographs and installed packages")
    one.add_argument("parcel", type=Path)
    one.add_argument("--data", type=Path, required=True, help="folder for the photographs")
    one = commands.add_parser("train", help="jobs side by side within a budget")
    one.add_argument("--job", action="append", required=True, help='"NAME OPTIONS OF train.py"')
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True, help="folder for shards and table")
    one.add_argument("--minutes", type=float, default=9.0)
    one.add_argument("--device", default="cuda")
    one = commands.add_parser("join", help="shards into states")
    one.add_argument("shards", type=Path)
    one.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        if args.command == "pack":
            wheels = [] if args.no_wheels else make_wheels(args.out / "wheels")
            counts = pack(args.data, args.out, args.parts, wheels)
            count = len(photographs(args.data)) + len(photographs(args.data, held=True))
            print(f"{sum(counts)} of {count} photographs, in parts of {' and '.join(map(str, counts))}")
        elif args.command == "unpack":
            print(f"{unpack(args.parcel, args.data)} photographs in {args.data}")
        elif args.command == "join":
            print(*join(args.shards, args.out), sep="\n")
        else:
            jobs = parse_jobs(args.job)
            failed = train(jobs, data=args.data, out=args.out, minutes=args.minutes, device=args.device)
            if failed:
                sys.exit(f"visit.py: {', '.join(failed)} failed; see above")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
