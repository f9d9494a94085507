"""Tests of details/runs.py, and of whole runs: what they learn, what disturbs them and what not."""

import contextlib
import functools
import io
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

import sample
import train
from details import data, log, runs, start
from details.data import InputError
from details.flags import SUPERVISED
from reward import Problem
from tests.helpers import (
    ON_TOY,
    TOY,
    arguments,
    base,
    fails,
    files,
    lines,
    patch,
    problems,
    shown_rows,
    trained,
)


def six_steps(folder, method, count):
    """The metrics of six steps on a few problems again and again, with what holds of every run."""
    out = folder / method
    flags = f"--method {method} --questions {count} --steps 6 --n 8 --updates 2 --eval-size 4"
    with patch(start, "STATIC_QUESTIONS", count):
        rows, _ = trained(out, flags + " --lr 4e-4", *files(folder, data=problems(count, 3)))
    for row in rows[1:]:
        assert ("loss" in row) == ("ratio/max_log" not in row) == (method in SUPERVISED)
        assert row.get("ratio/max_log", 0) < 1e-3, "learner and sampler disagree"
        assert row["seconds/sample"] > 0
        assert row["seconds/update"] > 0
    return rows[1:]


def rises(rows, name):
    """The mean of the last two steps is above the first step's."""
    before = rows[0][name]
    after = (rows[-2][name] + rows[-1][name]) / 2
    assert after > before + 0.05, f"{name} went from {before:.2f} to {after:.2f}"


# Methods, questions, and what rises.
LEARNED = """g-rl 16 response/accuracy
c-rl 16 critique/accuracy
gc-rl 16 response/accuracy
star 8 t1
multi-turn 8 t1 t2
score 8 t2"""


def test_methods_learn(tmp_path):
    """More and more responses are right, of the critic alone more and more judgements; first
    attempts get better, without stages, and second ones where they are rewarded."""
    for method, count, *names in map(str.split, LEARNED.splitlines()):
        rows = six_steps(tmp_path, method, int(count))
        for name in names:
            rises(rows, name)


def test_pair_sft_learns_its_pairs(tmp_path):
    """The loss on right responses after wrong ones falls."""
    rows = six_steps(tmp_path, "pair-sft", 8)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


SHORT = """--steps 5 --eval-every 3 --questions 3 --n 4 --updates 1 --eval-size 2 --pairs 1
--cache 9 --kl 0.01"""


def timeless(out):
    """A run's metrics without times and speeds."""
    timed = re.compile("second|tokens/s|memory")
    rows = []
    for row in lines(out / "metrics.jsonl"):
        rows.append({name: value for name, value in row.items() if not timed.search(name)})
    return rows


WRITTEN = "model.safetensors samples.jsonl train.jsonl held_out.jsonl exam.jsonl"


def same_runs(out, expected):
    """Two runs in five steps gave the same metrics, and to the byte the same weights and texts."""
    metrics = timeless(out)
    assert [row["step"] for row in metrics] == list(range(6))
    assert metrics == timeless(expected)
    for name in WRITTEN.split():
        written = (out / name).read_bytes()
        assert written
        assert written == (expected / name).read_bytes(), name


@functools.lru_cache
def undisturbed():
    """A SHORT run that nothing happens to, made once: its temporary folder."""
    folder = tempfile.TemporaryDirectory()
    trained(Path(folder.name) / "whole", SHORT)
    return folder


def goes_on(run):
    """A run that was disturbed goes on and ends as if nothing had been."""
    trained(run, SHORT + " --resume")
    same_runs(run, Path(undisturbed().name) / "whole")


def in_recipe(at, action):
    """The action is taken in the recipe of step `at`."""
    real = train.rewarded_critiques

    def rewarded_critiques(args, sampler, step, pairs):
        if step == at:
            action()
        return real(args, sampler, step, pairs)

    return patch(train, "rewarded_critiques", rewarded_critiques)


def disturbed(run, disturbance, words, step):
    """A run ends with an error that has these words; its checkpoint is of before `step`."""
    with disturbance:
        fails(words, trained, run, SHORT + " --resume", kind=ArithmeticError)
    assert torch.load(run / "resume.pt", weights_only=True)["step"] == step
    assert not (run / "model.safetensors").exists()


def signals(at, *numbers):
    """The process gets signals in the recipe of step `at`."""

    def send():
        for number in numbers:
            os.kill(os.getpid(), number)

    return in_recipe(at, send)


def test_signals(tmp_path):
    """After the first signal the step is finished and saved, and the run, if it was the last; the
    second ends it at once."""
    disturbed(tmp_path, signals(1, signal.SIGINT, signal.SIGTERM), "143", step=1)
    disturbed(tmp_path, signals(2, signal.SIGINT), "130", step=3)
    with signals(5, signal.SIGINT):
        goes_on(tmp_path)


def test_output_that_nobody_reads_costs_no_step(tmp_path):
    """Ctrl-C on `train.py | tee log` ends tee too: the step is finished and saved all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    words = io.StringIO()
    flags = f"{ON_TOY} {SHORT} --out {tmp_path}/run"
    with (
        open(writer, "w") as broken,
        contextlib.redirect_stdout(broken),
        contextlib.redirect_stderr(words),
        contextlib.suppress(SystemExit),
        signals(2, signal.SIGINT),
    ):
        train.main(flags.split())
    assert "stopped after step 2" in words.getvalue()
    goes_on(tmp_path / "run")


def test_errors_leave_the_checkpoint_whole(tmp_path):
    """After an error in an evaluation, or in a recipe, the run goes on."""
    wrong = mock.Mock(side_effect=InputError("prompt 7"))
    with_error = patch(train, "evaluate", side_effect=OverflowError("too good"))
    disturbed(tmp_path, with_error, "too good", step=0)
    disturbed(tmp_path, in_recipe(5, wrong), "error: prompt 7", step=4)
    goes_on(tmp_path)


def test_a_gradient_that_is_not_finite(tmp_path):
    """It stops the run before the step; the mini-batch is written down, and the run goes on."""
    real = train.update
    updates = []

    def update(args, sampler, reference, optimizer, samples, rng):
        updates.append([sample.text for sample in samples])
        if len(updates) == 4:
            samples[3].logprobs[0] = math.nan
        return real(args, sampler, reference, optimizer, samples, rng)

    disturbed(tmp_path, patch(train, "update", update), "gradient norm|not_finite.jsonl", step=4)
    rows = lines(tmp_path / "not_finite.jsonl")
    assert sorted(row["completion"] for row in rows) == sorted(updates[-1])
    goes_on(tmp_path)


@contextlib.contextmanager
def dying(count, die, names=""):
    """In place of its count-th write, flush or renaming a run dies, a file half written. names:
    the ends of the names of the files that count."""
    calls = itertools.count(1)
    save = torch.save

    def counted(real):
        def work(*args):
            name = str(getattr(args[-1], "name", args[-1]))
            if name.endswith(names) and next(calls) == count:
                if real is save:
                    args[-1].write(b"half of it")
                    args[-1].flush()
                die()
            return real(*args)

        return work

    with (
        patch(torch, "save", counted(save)),
        patch(os, "fsync", counted(os.fsync)),
        patch(os, "replace", counted(os.replace)),
    ):
        yield


def killed_while_saving(folder, method, counts, *more):
    """Interrupted again and again, half-way through its checkpoint (the first, third ... count of a
    try) or before it is renamed, a run goes on and ends as if nothing had been."""
    names = "resume.pt.partial", "resume.pt"
    flags = f"--method {method} {SHORT} --resume"
    trained(folder / "whole", flags, *more)
    for count in counts:
        with dying(count, mock.Mock(side_effect=KeyboardInterrupt), names):
            fails("130", trained, folder / "killed", flags, *more)
    trained(folder / "killed", flags, *more)
    same_runs(folder / "killed", folder / "whole")


def cold(folder):
    """Flags for a cold start."""
    return *files(folder, cold_start=shown_rows(problems(8, 2))), "--cold-start-lr", 1e-4


def test_killed_while_saving(tmp_path):
    """At the checkpoints after steps 0 and 3, at both moments; and at the last one."""
    killed_while_saving(tmp_path, "score", [3, 2, 3, 2, 4])


def test_killed_while_saving_after_a_cold_start(tmp_path):
    """At the first checkpoint, at both moments, and at the next one. The cold start makes the
    policy that the KL refers to."""
    killed_while_saving(tmp_path, "gc-rl", [1, 2, 4], *cold(tmp_path))


# A run that gets SIGKILL at its so many-th write.
DYING = """
import os, sys, train
from tests.test_runs import dying
with dying(int(sys.argv.pop(1)), lambda: os.kill(os.getpid(), 9)):
    train.main()
"""


def process(out, flags, count=0, limit=None):
    """A run in a process of its own, killed at its `count`-th write or after `limit` seconds; its
    exit status."""
    command = [sys.executable, "-c", DYING, str(count), *flags, "--out", str(out), "--resume"]
    with contextlib.suppress(subprocess.TimeoutExpired):  # it then sends SIGKILL
        done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=TOY.parent, timeout=limit)
        return done.returncode
    return -9


def kills(folder, method, cases, *more):
    """SIGKILL to one real run after the other, each at its so many-th write or after so many
    seconds. Each goes on with what the one before left, and the last gives what a run gives that
    nothing happens to. Returns the exit statuses."""
    flags = [*ON_TOY.split(), "--method", method, *SHORT.split(), *map(str, more)]
    statuses = [process(folder / "killed", flags, *case) for case in cases]
    for name in ("killed", "whole"):
        assert process(folder / name, flags) == 0
    same_runs(folder / "killed", folder / "whole")
    return statuses


def test_killed_for_real(tmp_path):
    """A run that gets SIGKILL half-way goes on as if nothing had been."""
    assert kills(tmp_path, "gc-rl", [(14,)]) == [-9]


def long_kills(tmp_path):
    """At 30 writes and at 20 moments."""
    cases = [(count,) for count in range(1, 31)]
    cases += [(0, seconds) for seconds in range(1, 21)]
    kills(tmp_path / "plain", "gc-rl", cases)
    kills(tmp_path / "score", "score", cases)
    kills(tmp_path / "cold", "gc-rl", cases, *cold(tmp_path))


def long_memory(tmp_path):
    """200 steps of GC-RL need no more memory than 20."""
    pages = []

    def look(row):
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    with patch(log, "show_step", look):
        trained(tmp_path / "out", "--steps 200 --eval-every 100 --eval-size 16")
    assert pages[200] < 1.05 * pages[20], pages[::20]


def go(out, text, seed=3):
    """A run of SCoRe for which a second or two are enough, on a file beside its folder."""
    flags = "--method score --questions 2 --n 2 --eval-size 4 --steps "
    return trained(out, flags + text, *files(out.parent, data=problems(12, seed)))


def test_folders_in_use_are_left_alone(tmp_path):
    """A folder with other files, or a file, is no place for a run, to begin or to go on."""
    (tmp_path / "file").touch()
    for name in ("start", "resume.pt.partial", "notes.txt"):
        (tmp_path / "other" / name).mkdir(parents=True)
    for text in ("1", "1 --resume"):
        fails("other|name another folder", go, tmp_path / "other", text)
        fails("file|Not a directory", go, tmp_path / "file", text)
    assert len(list(tmp_path.glob("other/*"))) == 3


def test_a_run_can_be_extended(tmp_path):
    """By --resume only; where there is no run yet, that says so. It goes on with the problems that
    it began with, and drops what is behind its checkpoint. Its folder knows how many steps it has
    now. While it goes on no model is there; --resume of a finished run changes no number, shows the
    table and writes the model again."""
    run = tmp_path / "run"
    _, printed = go(run, "1 --resume")
    assert f"there is no run in {run} yet" in printed
    fails("holds a run|--resume", go, run, "2")
    data.write_jsonl(run / "metrics.jsonl", [{"step": 2, "left": "over"}], "a")
    longer = "4 --resume --eval-every 7 --unsafe-code"
    with patch(train, "save_policy"):
        rows, _ = go(run, longer, seed=4)
    assert not (run / "model.safetensors").exists()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert "eval/t1" in rows[4]
    assert data.load_problems(run / "train.jsonl") == problems(12, 3)
    fails("--steps 4, not 3", go, run, "3 --resume --eval-every 7")
    flags = sample.run_flags(run)
    assert (flags["steps"], flags["unsafe_code"]) == (4, True)
    again, printed = go(run, longer)
    assert again == rows
    assert re.search(r"held out, greedy +start +end\n", printed)
    assert AutoModelForCausalLM.from_pretrained(run)


def test_flags_of_a_run_are_whole(tmp_path):
    """They are written aside and renamed."""
    with patch(os, "replace"):
        runs.write_files(tmp_path, defaultdict(list, samples=0))
    assert not (tmp_path / "run.json").exists()


def test_a_checkout_that_was_moved(tmp_path):
    """The toy's files then have another path, and a run goes on all the same, in its precision,
    whatever another device would make of none."""
    args = arguments(f"--resume --out {tmp_path}")
    flags = vars(args) | {"data": "/elsewhere/toy/train.jsonl", "out": "x", "device": "x"}
    state = {"format": runs.FORMAT, "step": 1, "planned": 1, "flags": flags, "precision": "bf16"}
    torch.save(state, tmp_path / "resume.pt")
    runs.open_run(args)
    assert args.precision == "bf16"
    args.data = "other/train.jsonl"
    fails("--data", runs.open_run, args)


def test_a_checkpoint_that_cannot_be_read(tmp_path):
    """One of another version, or an empty file: one line that says why."""
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"format": 0}, run / "resume.pt")
    fails("resume.pt cannot be read|of another version", go, run, "2 --resume")
    (run / "resume.pt").write_bytes(b"")
    fails("resume.pt cannot be read: EOFError", go, run, "2 --resume")


def test_a_full_disk(tmp_path):
    """One line says so, and where a model cannot be written, which."""
    full = OSError(28, "No space left on device")
    with patch(os, "replace", side_effect=full):
        fails("No space left", go, tmp_path / "full", "1")
    with patch(type(base()[0]), "save_pretrained", side_effect=full):
        fails("start|cannot be written|No space left", trained, tmp_path / "run", "--steps 0")


def test_texts_of_a_run(tmp_path):
    """Texts of the first and the last step for a person to read; a warning where all are truncated.
    Only problems are checked at the start: a prompt of a later turn may be too long, which is
    counted and stops nothing."""
    asked = files(tmp_path, data=[*problems(2), Problem("9+" * 300, "9")])
    flags = "--method g-rl --questions 3 --n 3 --steps 2 --eval-size 2 --max-new-tokens 3"
    with patch(start, "check_lengths"):
        rows, printed = trained(tmp_path / "run", flags, *asked)
    assert [row["skipped"] for row in rows[1:]] == [3, 3]
    assert rows[1]["tokens"] == 18
    assert printed.count("cannot learn: all completions were truncated") == 2
    assert "[response is wrong, reward 0, advantage +0.00]" in printed
    rows = lines(tmp_path / "run" / "samples.jsonl")
    texts = [row for row in rows if row["role"] == "response"]
    assert [row["step"] for row in texts] == [1] * 6 + [2] * 6
    assert sum("prompt" in row for row in texts) == 4, "one for three responses to a question"


def test_without_a_pair(tmp_path):
    """Where no response ends there is nothing to criticise: a step learns nothing, and says so;
    static pairs cannot be had, which ends the run."""
    flags = "--questions 2 --n 2 --steps 1 --eval-size 1 --max-new-tokens 1 --method "
    _, printed = trained(tmp_path / "run", flags + "c-rl --critique-data dynamic")
    assert "cannot learn: all responses were truncated" in printed
    with patch(start, "STATIC_QUESTIONS", 2):
        fails("static pairs: 2 questions", trained, tmp_path / "static", flags + "pair-sft")


def test_order_of_the_problems():
    """Pass after pass over all of them, each in an order of its own, whatever a step takes."""
    asked = sum((data.batch_of("abcde", step, 0, 3) for step in range(1, 11)), [])
    orders = ["".join(asked[first : first + 5]) for first in range(0, 30, 5)]
    assert len(set(orders)) > 2
    for order in orders:
        assert sorted(order) == list("abcde")
    assert "".join(data.batch_of("ab", 1, 1, 7)) == "abababb", "seed 0 begins with abba"


def test_two_processes_in_one_folder(tmp_path):
    """The second is refused with one line while the first holds the lock."""
    flags = "--steps 0 --eval-size 2 --resume"
    with runs.lock_folder(tmp_path / "run"):
        fails("run|another process", trained, tmp_path / "run", flags)


def test_terminals_that_cannot_show_a_character():
    """What the stream cannot encode is printed as a question mark."""
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with patch(sys, "stdout", ascii_stream):
        data.run_command(print, "1 \u2212 1")
        ascii_stream.flush()
        assert ascii_stream.buffer.getvalue() == b"1 ? 1\n"


# The files that import torch, in whatever order they are imported.
FIRST = """reward rollout train sample toy.make toy.planted scale.check scale.trl_gcrl
scale.trl_score figures.explain figures.findings figures.real figures.speed details.cost
details.data details.fast details.memory details.policy details.runs details.start
details.supervised"""

# Ends where torch would be imported.
UP_TO_TORCH = """
import os, sys

class Finder:
    def find_spec(name, *_):
        if name == "torch":
            sys.exit(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Finder)
import """


def test_spinning_threads_are_limited_before_torch_is_imported():
    """Whichever file is imported first."""
    for name in FIRST.split():
        command = [sys.executable, "-c", UP_TO_TORCH + name]
        done = subprocess.run(command, cwd=TOY.parent, env={}, capture_output=True)
        assert done.stderr == b"1500\n", name
