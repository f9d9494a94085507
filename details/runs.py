"""What a run leaves in its folder.

OUT/start            the policy that RL starts from, which is the KL's reference
OUT/resume.pt        everything that `--resume` needs, as of the last checkpoint
OUT/run.json         the flags
OUT/metrics.jsonl    a line for each step; train, held_out, exam and samples.jsonl beside it
OUT/run.html         a page that shows them
OUT/best             the policy of the best evaluation
OUT                  at the end, the trained policy; with --lora, its adapters in OUT/adapter
"""

import copy
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from reward import Pair, Problem  # isort: skip (before torch)

import torch

from details.data import from_pair, from_problem, write_jsonl
from details.errors import InputError, one_line
from details.flags import selected_by
from details.lora import save_adapters
from details.policy import save_policy, trained_weights

if os.name == "nt":
    import msvcrt
else:
    import fcntl

FORMAT = 12  # of resume.pt
# What a run writes before its first resume.pt.
BEFORE_CHECKPOINT = {"start", "lock", "resume.pt.partial"}
MAY_CHANGE = ("resume", "device", "eval_every", "out", "unsafe_code")  # flags, when a run goes on
torch.serialization.add_safe_globals([Problem, Pair])  # all that resume.pt holds of ours


def open_run(args):
    """The state saved in --out, None for a run that begins; refuses a folder with other files."""
    out = Path(args.out)
    path = out / "resume.pt"
    if not path.exists():
        found = set(os.listdir(out)) if out.exists() else set()
        if found - BEFORE_CHECKPOINT:
            raise InputError(f"--out {out}: holds files but no resume.pt; name another folder")
        if args.resume:
            print(f"note: --resume: there is no run in {out} yet, so one begins")
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
        if name == "steps":
            # It may be extended, and not end before the steps that it has made.
            before = max(state["planned"], state["step"] - 1, value)
        # Paths by folder and name: they may have been moved, as a checkout with the toy.
        kept = Path(str(before)).parts[-2:] == Path(str(value)).parts[-2:]
        if not kept and name not in MAY_CHANGE:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"--resume: the run in {out} has {flag} {before}, not {value}")
    args.precision = state["precision"]  # whatever device it goes on with
    return state


def lock_folder(out):
    """The run's folder is made. Returns an open file in it that no other process can lock until it
    is closed, as it is when the process ends, however it ends. Raises InputError where another one
    holds it."""
    (out / "start").mkdir(parents=True, exist_ok=True)
    file = (out / "lock").open("w")
    try:
        if os.name == "nt":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(f"--out {out}: another process is at work in it") from error
    return file


def save_state(out, state, model, optimizer):
    """Write resume.pt: aside, flushed to disk, renamed. At no moment is there half of one."""
    state = state | {"weights": trained_weights(model), "optimizer": optimizer.state_dict()}
    partial = out / "resume.pt.partial"
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out / "resume.pt")
    except (OSError, RuntimeError) as error:
        raise InputError(f"{out}: {one_line(error)}; the last checkpoint is whole") from error


def write_files(out, state):
    """The run's files of JSON as of its state: steps behind the checkpoint are done again."""
    files = {
        "train.jsonl": map(from_problem, state["problems"]),
        "held_out.jsonl": map(from_problem, state["held_out"]),
        "exam.jsonl": map(from_pair, state["exam"]),
        "metrics.jsonl": state["metrics"],
        "run.json": [state["flags"]],
    }
    for name, rows in files.items():
        write_jsonl(out / "partial", rows)
        os.replace(out / "partial", out / name)
    with open(out / "samples.jsonl", "ab") as file:
        file.truncate(min(file.tell(), state["samples"]))
    # Of a run that is extended: a model in the folder says that the run has ended.
    (out / "model.safetensors").unlink(missing_ok=True)


# ------------------------------------------------------------------------------- the best model


def keep_best(out, state, sampler):
    """Leave the model in OUT/best if no evaluation before its own, the last row, was better."""
    row = state["metrics"][-1]
    value = row.get("select", row[selected_by(state["flags"]["method"])]) or 0.0
    state["last"] = value
    if value < state["best"]["value"]:
        return
    state["best"] = {"step": row["step"], "value": value}
    if state["flags"]["lora"]:
        # Merged when the run ends; of a run that is extended, the model of before goes.
        (out / "best" / "model.safetensors").unlink(missing_ok=True)
        state["best"]["adapters"] = copy.deepcopy(trained_weights(sampler.model))
        save_adapters(sampler.model, out / "best" / "adapter")
    else:
        write_best(out, sampler)


def write_best(out, sampler):
    """What was in OUT/best is replaced file by file, each as a whole: only the weights differ."""
    partial = out / "best.partial"
    save_policy(sampler.model, sampler.tokenizer, partial)
    for name in ("run.json", "held_out.jsonl", "exam.jsonl"):
        shutil.copy(out / name, partial)
    (out / "best").mkdir(exist_ok=True)
    for path in partial.iterdir():
        if path.is_file():  # adapters are there already
            os.replace(path, out / "best" / path.name)
    shutil.rmtree(partial)


@contextmanager
def signals_caught():
    """A list that gets the number of the first SIGINT or SIGTERM inside the block; the second
    leaves at once. What was in charge before is so again behind the block."""
    seen = []

    def on_signal(number, frame):
        if seen:
            sys.exit(128 + number)
        seen.append(number)

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
