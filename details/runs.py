"""What a run leaves in its folder, and what it prints.

OUT/start            the policy that RL starts from, which is the KL's reference
OUT/resume.pt        everything that `--resume` needs, as of the last checkpoint
OUT/run.json         the flags
OUT/metrics.jsonl    a line for each step; train, held_out, exam and samples.jsonl beside it
OUT                  at the end, the trained policy
"""

import json
import os
import random
import re
import signal
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from details.data import InputError, Pair, Problem, from_pair, from_problem, one_line, write_jsonl

FORMAT = 4  # of resume.pt
BEFORE_CHECKPOINT = {"start", "resume.pt.partial"}  # what a run writes before its first resume.pt
MAY_CHANGE = ("steps", "resume", "device", "eval_every", "out")  # flags, when a run goes on
torch.serialization.add_safe_globals([Problem, Pair])  # all that resume.pt holds of ours


def seed_of(*parts):
    """A seed that depends on all parts: run, step, what is sampled. It needs no state, so that a
    resumed run goes on alike."""
    return zlib.crc32(repr(parts).encode())


def batch_of(items, step, seed, count):
    """The items of a step: pass after pass over all of them, each in an order of its own."""
    orders = {}
    batch = []
    for place in range((step - 1) * count, step * count):
        epoch, place = divmod(place, len(items))
        if epoch not in orders:
            rng = random.Random(seed_of(seed, "epoch", epoch))
            orders[epoch] = rng.sample(items, len(items))
        batch.append(orders[epoch][place])
    return batch


class Meter:
    """Where a step's time goes, and how many of the tokens it computed nobody needed."""

    def __init__(self):
        self.seconds = Counter()  # {kind of work: seconds}
        self.computed = 0  # tokens, padding included
        self.useful = 0  # tokens without padding

    @contextmanager
    def timed(self, kind, model):
        """Add the seconds that the block takes."""
        start = time.perf_counter()
        yield
        if model.device.type == "cuda":  # where work goes on after the call
            torch.cuda.synchronize(model.device)
        self.seconds[kind] += time.perf_counter() - start

    def count(self, computed, useful):
        self.computed += computed
        self.useful += useful

    def padding(self):
        """The share of the computed tokens that nobody needed."""
        return 1 - self.useful / max(1, self.computed)


# ------------------------------------------------------------------------------------ the folder


def open_run(args):
    """The state saved in --out, None for a run that begins; refuses a folder that is in use."""
    out = Path(args.out)
    path = out / "resume.pt"
    if not path.exists():
        found = set()
        if out.is_dir():
            found = set(os.listdir(out))
        elif out.exists():
            found = {out.name}
        if found - BEFORE_CHECKPOINT:
            raise InputError(f"--out {out}: holds files but no resume.pt; name another folder")
        return None
    if not args.resume:
        raise InputError(f"--out {out}: holds a run; go on by --resume, or name another folder")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] != FORMAT:
            raise ValueError("it is of another version of this program")
    except Exception as error:  # a file that is cut, or of another program
        raise InputError(f"--resume: {path} cannot be read: {one_line(error)}") from error
    for name, value in vars(args).items():
        before = state["flags"].get(name)
        shorter = name == "steps" and value < before
        if before != value and (name not in MAY_CHANGE or shorter):
            flag = name.replace("_", "-")
            raise InputError(f"--resume: the run in {out} has --{flag} {before}, not {value}")
    return state


def save_state(out, state, model, optimizer):
    """Write resume.pt: aside, flushed to disk, renamed. At no moment is there half of one."""
    weights = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    partial = out / "resume.pt.partial"
    try:
        with open(partial, "wb") as file:
            torch.save(state | weights, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out / "resume.pt")
    except (OSError, RuntimeError) as error:
        raise InputError(f"{out}: {one_line(error)}; the last checkpoint is whole") from error


def write_files(out, state):
    """The run's JSONL files as of its state: steps behind the checkpoint are done again."""
    files = {
        "train": map(from_problem, state["problems"]),
        "held_out": map(from_problem, state["held_out"]),
        "exam": map(from_pair, state["exam"]),
        "metrics": state["metrics"],
        "samples": state["samples"],
    }
    for name, rows in files.items():
        write_jsonl(out / "partial", rows)
        os.replace(out / "partial", out / f"{name}.jsonl")
    (out / "run.json").write_text(json.dumps(state["flags"], indent=1) + "\n", encoding="utf-8")


def run_flags(folder):
    """The flags of the run that made a model folder; none if no run made it."""
    path = Path(folder) / "run.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def catch_signals():
    """A list that gets the number of the first SIGINT or SIGTERM; the second leaves at once."""
    seen = []

    def on_signal(number, frame):
        if seen:
            sys.exit(128 + number)
        seen.append(number)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return seen


# ------------------------------------------------------------------------------- what is printed

SHOWN = (
    "stage",
    "response/accuracy",
    "critique/p1",
    "critique/p2",
    "t1",
    "t2",
    "kept",
    "groups/no_spread",
    "truncated",
    "skipped",
    "traces",
    "loss",
    "ratio/max_log",
    "grad_norm",
    "seconds/sample",
    "seconds/update",
    "eval/generation",
    "eval/critique",
    "eval/t2",
    "eval/delta",
)


def show_step(row, steps):
    """One step as a line of text, under the names of metrics.jsonl."""
    shown = [f"{name} {row[name]:.3g}" for name in SHOWN if row.get(name) is not None]
    tqdm.write(f"step {row['step']}/{steps}  " + "  ".join(shown))
    if row.get("truncated", 0) > 0.5:
        tqdm.write("warning: more than half were cut at --max-new-tokens and count as wrong")


def show_samples(tokenizer, step, episodes):
    """The texts of a step, as rows for samples.jsonl: of each role one group, one that has spread
    if any has. Prints the first text of each."""
    rows = []
    for role in dict.fromkeys(e.role for e in episodes):
        of_role = [e for e in episodes if e.role == role]
        chosen = next((e for e in of_role if e.advantage), of_role[0])
        group = [e for e in of_role if e.group == chosen.group][:8]
        rows += [sample_row(tokenizer, step, e) for e in group]
        text = printable(f"{group[0].problem.question}\n{group[0].text}")
        tqdm.write(f"--- {role}, reward {group[0].reward:g}:\n{text}")
    return rows


def sample_row(tokenizer, step, episode):
    """An episode for a person to read."""
    return {
        "step": step,
        "role": episode.role,
        "prompt": tokenizer.decode(episode.sample.prompt),
        "completion": episode.text,
        "stopped": episode.sample.stopped,
        "reward": episode.reward,
        "advantage": episode.advantage,
    }


def printable(text):
    """Text of a model, safe for a terminal: control characters and escapes are spelled out."""
    return re.sub(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]", lambda c: repr(c[0])[1:-1], text)


def print_table(title, columns):
    """A line for each metric of any column {heading: {metric: value}}, under its own name."""
    width = max(9, *(len(heading) + 2 for heading in columns))
    print(f"\n{title:32}" + "".join(f"{heading:>{width}}" for heading in columns))
    names = [name for column in columns.values() for name in column]
    for name in dict.fromkeys(names):
        line = f"{name:32}"
        for column in columns.values():
            value = column.get(name)
            if value is None:
                value = "-"
            elif isinstance(value, float):
                value = f"{value:.3f}"
            line += f"{value:>{width}}"
        print(line)
