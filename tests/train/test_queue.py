# SPDX-License-Identifier: Apache-2.0
"""Claims of queue.py: order, budgets, going on after any end, sentences; the standard library's queue stays.

A stand-in for train.py, with its files and signals but nothing that takes time, serves most tests; the last
two take the real one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"

STAND_IN = """
import argparse, json, os, sys, time
from pathlib import Path

def parse_args(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", choices=["mbt2018", "mbt2018-mean"])
    parser.add_argument("--max-minutes", type=float)
    for option in ("--data", "--out", "--state", "--init-from"):
        parser.add_argument(option, type=Path)
    for option, default in (("-N", 16), ("-M", 24), ("--pace", 0), ("--end-at", 100), ("--fail-at", 100)):
        parser.add_argument(option, type=float, default=default)
    args = parser.parse_args(argv)
    args.lmbdas = (0.01, 0.02, 0.03)
    return args

def main():
    from safetensors import safe_open
    from safetensors.numpy import save_file
    import numpy as np
    args = parse_args(sys.argv[1:])
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, record = args.out / "checkpoint.pt", args.out / "run.json"
    at = {"architecture": args.arch, "N": args.N, "M": args.M, "lmbdas": list(args.lmbdas)}
    at |= {"step": 0, "seconds": 0.0, "core": os.environ["OMP_NUM_THREADS"]}
    if checkpoint.exists():
        at = json.loads(checkpoint.read_text())
    elif args.state.exists():
        with safe_open(args.state, "np") as file:
            at = json.loads(file.metadata()["run"])
    with args.out.with_suffix(".starts").open("a") as starts:
        starts.write(json.dumps({"step": at["step"], "argv": sys.argv[1:]}) + "\\n")

    def save():
        checkpoint.write_text(json.dumps(at))
        args.state.parent.mkdir(exist_ok=True)
        save_file({"w": np.zeros(3, np.float16)}, args.state, metadata={"run": json.dumps(at)})

    try:
        while at["seconds"] < 60 * args.max_minutes:
            if at["step"] == args.fail_at:
                sys.exit("train.py: 51 gradients in a row were not finite; lower --muon-lr and run again")
            if at["step"] == args.end_at:
                return
            time.sleep(args.pace)
            at["step"] += 1
            at["seconds"] += 60.0
            if at["step"] % 2 == 0:
                save()
        at |= {"average": 0.999, "score": 0.7, "loss": [0.3, 0.6, 1.2]}
        record.write_text(json.dumps(at | {"minutes": at["seconds"] / 60}))
        save()
        for name in ("model", "model-1", "model-2", "model-3"):
            (args.out / f"{name}.pth").write_text("weights")
    except KeyboardInterrupt:
        save()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """train.py of these tests, in front of the real one; the current folder is a fresh one with photos/."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "train.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(folder))
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_queue(*runs: str, data: str = 'data = "photos"') -> Path:
    path = Path("queue.toml")
    path.write_text("\n".join([data, *(f"[[run]]\n{run}" for run in runs)]))
    return path


def run_queue(*more: str) -> int:
    import training_queue

    return training_queue.main(["queue.toml", *more])


def starts(name: str) -> list[dict]:
    path = Path("runs") / f"{name}.starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state_of(name: str) -> dict:
    from training_queue import _read_state

    return _read_state(Path("states") / f"{name}.safetensors")


FIRST = 'name = "first"\narch = "mbt2018"\nhours = 0.1'
SECOND = 'name = "mbt2018-mean"\nhours = 0.2'
SLOW = FIRST + "\noptions = { pace = 0.2 }"


def test_runs_in_order_for_their_hours_and_never_twice(stand_in, capfd):
    write_queue(FIRST + "\noptions = { N = 8 }", SECOND + '\ninit_from = "first"')
    assert run_queue() == 0
    first, second = Path("runs/first/run.json"), Path("runs/mbt2018-mean/run.json")
    assert first.stat().st_mtime_ns < second.stat().st_mtime_ns
    assert (json.loads(first.read_text())["step"], json.loads(second.read_text())["step"]) == (6, 12)
    assert json.loads(first.read_text())["N"] == 8
    assert json.loads(first.read_text())["core"] == "1"
    argv = starts("mbt2018-mean")[0]["argv"]
    assert argv[argv.index("--init-from") + 1] == "runs/first/model.pth"
    assert argv[argv.index("--state") + 1] == "states/mbt2018-mean.safetensors"
    assert argv[argv.index("--max-minutes") + 1] == "12"

    tables = capfd.readouterr().out.split("| run |")[1:]
    assert len(tables) == 3  # at the start, and after each run
    assert "| first | mbt2018 | waits | 0.00 | 0.1 | 0 | - | - | - |" in tables[0]
    assert "| first | mbt2018 | done | 0.10 | 0.1 | 6 | 0.999 | 0.7 | 0.3000, 0.6000, 1.2000 |" in tables[1]
    assert "| mbt2018-mean | mbt2018-mean | done | 0.20 | 0.2 | 12 |" in tables[2]
    assert run_queue() == 0
    assert len(starts("first")) == len(starts("mbt2018-mean")) == 1


def test_the_list_starts_nothing_and_needs_no_photographs(stand_in, capfd):
    write_queue(FIRST, SECOND, data="")
    assert run_queue("--list") == 0
    assert capfd.readouterr().out.count("| waits |") == 2
    assert not Path("runs").exists()


def test_one_run_alone(stand_in, capfd):
    write_queue(FIRST, SECOND, 'name = "third"\narch = "mbt2018"\nhours = 0.1\ninit_from = "first"')
    assert run_queue("--only", "third") == 2
    assert "starts from first, which is not done; run that first" in capfd.readouterr().err
    assert run_queue("--only", "first") == run_queue("--only", "third") == 0
    assert starts("third") and not starts("mbt2018-mean")
    assert run_queue("--only", "fourth") == 2
    assert "--only fourth is not in the queue; it has first, mbt2018-mean, third" in capfd.readouterr().err


def test_a_larger_budget_goes_on_with_a_run_that_was_done(stand_in):
    write_queue(FIRST)
    assert run_queue() == 0
    write_queue(FIRST.replace("0.1", "0.2"))
    assert run_queue() == 0
    assert [start["step"] for start in starts("first")] == [0, 6]


def test_weights_of_before_the_last_check_are_not_done(stand_in):
    """It was killed between the check and the export."""
    write_queue(FIRST)
    assert run_queue() == 0
    os.utime("runs/first/model-3.pth", ns=(0, 0))
    assert run_queue() == 0
    assert len(starts("first")) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_queue_goes_on(stand_in, number, capfd):
    write_queue(SLOW, SECOND)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=lambda: os._exit(run_queue()))
    process.start()
    for _ in range(6000):
        if Path("states/first.safetensors").exists():
            break
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        text = capfd.readouterr()
        assert "stopped; the same command goes on with first" in text.err
        assert "| first | mbt2018 | begun |" in text.out
    assert run_queue() == 0
    first, second = starts("first")
    assert first["step"] == 0 and 2 <= second["step"] < 6
    assert json.loads(Path("runs/first/run.json").read_text())["step"] == 6
    assert len(starts("mbt2018-mean")) == 1


def test_the_training_of_a_killed_queue_is_waited_for(stand_in, monkeypatch, capfd):
    """Two trainings never write into one folder."""
    import fcntl

    import training_queue

    monkeypatch.setattr(training_queue, "WAIT_SECONDS", 0.1)
    write_queue(FIRST)
    Path("runs/first").mkdir(parents=True)
    with open("runs/first/queue.lock", "w+") as file:
        print(4711, file=file, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_queue() == 2
        assert (
            "in use by process 4711; wait until it has ended, or `kill -INT 4711`" in capfd.readouterr().err
        )
        assert not starts("first")
    assert run_queue() == 0


def test_another_machine_goes_on_from_the_state(stand_in, capfd):
    write_queue(FIRST + "\noptions = { end-at = 4 }", SECOND)
    assert run_queue() == 1
    assert "run first ended before its 0.1 hours" in capfd.readouterr().err
    shutil.rmtree("runs")
    write_queue(FIRST, SECOND + '\ninit_from = "first"')
    assert run_queue() == 0
    assert [start["step"] for start in starts("first")] == [4]

    shutil.rmtree("runs")
    Path("states/mbt2018-mean.safetensors").unlink()
    assert run_queue("--list") == 0
    assert "| first | mbt2018 | done | 0.10 | 0.1 | 6 | 0.999 | 0.7 | 0.3000," in capfd.readouterr().out
    assert run_queue() == 0
    assert not starts("first")  # its state says that it is done, and serves the next
    argv = starts("mbt2018-mean")[0]["argv"]
    assert argv[argv.index("--init-from") + 1] == "states/first.safetensors"
    assert run_queue("--only", "first") == 0  # its weights are wanted here
    assert [start["step"] for start in starts("first")] == [6] and Path("runs/first/model.pth").exists()
    assert run_queue("--only", "first") == 0
    assert len(starts("first")) == 1


def test_a_checkpoint_that_is_older_than_the_state_is_not_taken(stand_in, capfd):
    write_queue(FIRST + "\noptions = { end-at = 4 }")
    assert run_queue() == 1
    torch.save({"seconds": 60.0}, "runs/first/checkpoint.pt")
    assert run_queue() == 2
    error = capfd.readouterr().err
    assert "checkpoint.pt stands at 0.02 hours and states/first.safetensors at 0.07" in error
    assert "remove the one" in error
    assert state_of("first")["step"] == 4 and len(starts("first")) == 1


def test_a_failed_run_stops_the_queue_with_its_sentence(stand_in, capfd):
    write_queue(FIRST + "\noptions = { fail-at = 4 }", SECOND)
    assert run_queue() == 1
    error = capfd.readouterr().err
    assert "train.py: 51 gradients in a row were not finite; lower --muon-lr" in error
    assert error.index("train.py: 51") < error.index("queue.py: run first failed with exit code 1, see above")
    assert not starts("mbt2018-mean")
    write_queue(FIRST, SECOND)  # cured
    assert run_queue() == 0
    assert [start["step"] for start in starts("first")] == [0, 4]


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([], "has no runs; each is a table that begins with the line [[run]]"),
        ([FIRST + "\nhour = 3"], "key 'hour' is not known; use arch, hours, init_from, name, options"),
        (["hours = 1"], "run 1: name None must be a word"),
        (['name = "../a"\nhours = 1'], "run 1: name '../a' must be a word"),
        ([FIRST, FIRST], "run 2: name 'first' is taken by an earlier run"),
        (['name = "mbt2018"'], "hours must be a positive number of CPU hours, not None"),
        (['name = "mbt2018"\nhours = 0'], "hours must be a positive number of CPU hours, not 0"),
        (['name = "mbt2018"\nhours = nan'], "hours must be a positive number of CPU hours, not nan"),
        (['name = "mbt2018"\nhours = true'], "hours must be a positive number of CPU hours, not True"),
        (
            ['name = "mbt2019"\nhours = 1'],
            "run mbt2019: argument --arch: invalid choice: 'mbt2019' (choose from",
        ),
        ([SECOND, FIRST + '\ninit_from = "third"'], "init_from 'third' must name an earlier run"),
        (
            [FIRST + '\ninit_from = "mbt2018-mean"', SECOND],
            "must name an earlier run of the queue (there is none)",
        ),
        ([FIRST + "\noptions = { pacee = 1 }"], "run first: unrecognized arguments: --pacee 1"),
        ([FIRST + '\noptions = { pace = "fast" }'], "argument --pace: invalid float value: 'fast'"),
        ([FIRST + "\noptions = { max-steps = 3 }"], "option 'max-steps' is not for the queue"),
        ([FIRST + "\noptions = { pace = [1] }"], "option pace must have a number or a string, not [1]"),
        ([FIRST + "\noptions = 3"], "options must be a table"),
        (['name = "first'], "cannot be read as TOML"),
    ],
)
def test_a_wrong_queue_gets_a_sentence_before_anything_starts(stand_in, runs, sentence, capfd):
    write_queue(SECOND.replace("mbt2018-mean", "zero") + '\narch = "mbt2018"', *runs)
    if not runs or "taken" in sentence or re.search("run [12]:|there is none|no runs", sentence):
        write_queue(*runs)
    assert run_queue() == 2
    error = capfd.readouterr().err
    assert sentence in error
    assert error.startswith("queue.py: ") and error.count("\n") == 1
    assert not Path("runs").exists()


def test_other_wrong_input(stand_in, capfd):
    write_queue(FIRST, data="date = 3")
    assert run_queue() == 2
    assert "key 'date' is not known; use data, run" in capfd.readouterr().err
    write_queue(FIRST, data='data = "nowhere"')
    assert run_queue() == 2
    assert "data must be a folder of photographs, not nowhere; name one with --data" in capfd.readouterr().err
    assert run_queue("--core", "4096", "--data", "photos") == 2
    assert "--core 4096 is not available" in capfd.readouterr().err
    assert run_queue("--data", "photos") == 0  # it wins


def test_files_of_another_run_stay(stand_in, capfd):
    write_queue(SECOND, FIRST)
    Path("states").mkdir()
    facts = {
        "architecture": "mbt2018",
        "N": 16,
        "M": 32,
        "lmbdas": [0.01, 0.02, 0.03],
        "step": 3,
        "seconds": 9,
    }
    state = Path("states/first.safetensors")
    save_file({"w": torch.zeros(1)}, state, metadata={"run": json.dumps(facts)})
    before = state.read_bytes()
    assert run_queue() == 2
    error = capfd.readouterr().err
    assert "states/first.safetensors is of a run with M 32, and run first has 24" in error
    assert state.read_bytes() == before and not Path("runs").exists()

    state.write_bytes(b"no state")
    assert run_queue() == 2
    assert "cannot be read as a state of train.py" in capfd.readouterr().err
    state.unlink()
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/run.json").write_text(json.dumps(facts | {"M": 24, "architecture": "mbt2018-mean"}))
    assert run_queue() == 2
    assert (
        "run.json is of a run with architecture mbt2018-mean, and run first has mbt2018"
        in capfd.readouterr().err
    )


def test_a_large_state_is_named(stand_in, monkeypatch, capfd):
    import training_queue

    write_queue(FIRST)
    monkeypatch.setattr(training_queue, "STATE_MB", 1e-5)
    assert run_queue() == 0
    assert re.search(
        r"states/first.safetensors has 0\.0 MB, and a state that is committed", capfd.readouterr().err
    )


def test_the_core_is_the_trainings_too(stand_in, monkeypatch):
    cores = []
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, chosen: cores.append((pid, chosen)), raising=False
    )
    write_queue(FIRST)
    assert run_queue("--core", "1") == 0
    assert cores == [(0, {1})]


def test_the_zoos_queue_is_one_that_train_takes(capfd):
    import training_queue

    assert training_queue.main([str(RECIPE / "queue.toml"), "--list", "--runs", "no/runs"]) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0][2:] for row in rows][:2] == ["elic2022-gdn", "mbt2018-mean"]
    assert len(rows) == 7


def test_scripts_beside_queue_get_the_standard_librarys(tmp_path):
    """As in a script of zoo/train: its folder is first on sys.path, and torch has yet to be imported."""
    program = (
        f"import sys; sys.path.insert(0, {str(RECIPE)!r}); import queue, pickle, concurrent.futures;"
        "q = queue.Queue(); q.put(1); print(queue.__file__, q.get(), sys.modules['queue'] is queue);"
        "assert concurrent.futures.ThreadPoolExecutor(1).submit(abs, -2).result() == 2;"
        "assert pickle.loads(pickle.dumps(queue.Full)) is queue.Full"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path, got, same = done.stdout.split()
    assert Path(path).parent != RECIPE and Path(path).name == "queue.py"
    assert (got, same) == ("1", "True")


@pytest.mark.parametrize("script", ["train.py", "queue.py"])
def test_both_commands_start(script, python):
    assert "--data" in python(RECIPE / script, "--help", check=True).stdout


@pytest.fixture
def same_torch_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_what_train_writes_is_what_the_queue_reads(photos, tmp_path, monkeypatch, capfd, same_torch_after):
    """In this process, and on small crops."""
    import held_out
    import train
    import training_queue

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "FINE", {"size": 128, "count": 1})
    monkeypatch.setattr(held_out, "CHECK_PX", 64)
    monkeypatch.setattr(training_queue, "_train", lambda arguments, *_: train.main(arguments) or 0)
    options = 'options = { N = 16, M = 24, device = "cpu" }'
    write_queue(f'name = "mbt2018-mean"\nhours = 1e-5\n{options}', data="")
    assert run_queue("--data", str(photos)) == 0
    record = json.loads(Path("runs/mbt2018-mean/run.json").read_text())
    state = state_of("mbt2018-mean")
    assert len(record["loss"]) == 8
    for key in ("average", "score", "loss", "step"):
        assert state[key] == record[key]
    low, high = record["loss"][0], record["loss"][7]
    row = f"| done | 0.00 | 1e-05 | {record['step']} | {record['average']} | {record['score']} | {low:.4f}, "
    text = capfd.readouterr().out
    assert row in text and f", {high:.4f} |" in text

    shutil.rmtree("runs")  # on another machine
    assert run_queue("--data", str(photos)) == 0
    assert not Path("runs").exists()
    assert run_queue("--data", str(photos), "--only", "mbt2018-mean") == 0
    again = json.loads(Path("runs/mbt2018-mean/run.json").read_text())
    assert again["step"] == record["step"] and again["score"] == pytest.approx(record["score"], rel=1e-2)
    assert Path("runs/mbt2018-mean/model-8.pth").exists()


@pytest.mark.slow
def test_the_real_recipe_in_a_queue(photos, tmp_path, monkeypatch, capfd):
    """Two runs of a second, then a third of it more from the state alone."""
    monkeypatch.chdir(tmp_path)
    small = 'arch = "mbt2018-mean"\noptions = { N = 16, M = 24, device = "cpu" }'
    first = f'name = "first"\nhours = 0.0003\n{small}'
    second = f'name = "second"\ninit_from = "first"\nhours = 0.0003\n{small}'
    write_queue(first, second, data="")
    assert run_queue("--data", str(photos)) == 0
    text = capfd.readouterr()
    assert text.out.count("| done |") == 3
    assert "tensors from runs/first/model.pth" in text.err
    record = json.loads(Path("runs/second/run.json").read_text())
    assert load_file("states/second.safetensors")["g_a.0.weight"].dtype == torch.float16

    shutil.rmtree("runs")
    write_queue(first, second.replace("0.0003", "0.0004"), data="")
    assert run_queue("--data", str(photos)) == 0
    assert "going on from states/second.safetensors" in capfd.readouterr().err
    assert not Path("runs/first").exists()
    assert json.loads(Path("runs/second/run.json").read_text())["step"] > record["step"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    write_queue(second.replace("0.0003", "0.0005").replace('init_from = "first"\n', ""), data="")
    before = Path("states/second.safetensors").read_bytes()
    assert run_queue("--data", "photos") == 1
    assert re.search(
        r"train.py: photos/broken.png cannot be read.*\n\s*queue.py: run", capfd.readouterr().err
    )
    assert Path("states/second.safetensors").read_bytes() == before
