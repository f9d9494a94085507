"""What a run leaves in its folder.

OUT/start            the policy that RL starts from, which is the KL's reference
OUT/resume.pt        everything that `--resume` needs, as of the last checkpoint
OUT/run.json         the flags
OUT/metrics.jsonl    a line for each step; train, held_out, exam and samples.jsonl beside it
OUT                  at the end, the trained policy
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch

from details.data import (
    InputError,
    Pair,
    Problem,
    from_pair,
    from_problem,
    load_split,
    one_line,
    read_jsonl,
    to_pair,
    write_jsonl,
)
from details.demonstrations import load_demonstrations
from details.fast import LOGITS, memory, most_tokens
from details.policy import device_of, without_weights

if os.name == "nt":
    import msvcrt
else:
    import fcntl

# For tqdm's `disable`: bars are for terminals, and for notebooks, which are no terminals.
BAR_OFF = False if "ipykernel" in sys.modules else None
FORMAT = 4  # of resume.pt
BEFORE_CHECKPOINT = {
    "start",
    "lock",
    "resume.pt.partial",
}  # what a run writes before its first resume.pt
MAY_CHANGE = ("resume", "device", "eval_every", "out")  # flags, when a run goes on
torch.serialization.add_safe_globals([Problem, Pair])  # all that resume.pt holds of ours


class Meter:
    """What a step costs: where its time goes, how many completions it draws, how many of the tokens
    that it computes nobody needs."""

    def __init__(self):
        self.seconds = Counter()  # {kind of work: seconds}
        self.samples = 0  # completions drawn
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

    def metrics(self, tokens):
        """The step's cost as metrics; `padding`: the share of computed tokens that nobody needed.
        tokens: those that were learned from."""
        seconds = self.seconds
        seconds["rewards"] = seconds["sample"] - seconds["prefill"] - seconds["decode"]
        seconds["step"] = seconds["sample"] + seconds["update"]
        metrics = {f"seconds/{kind}": value for kind, value in seconds.items()}
        metrics["samples"] = self.samples
        metrics["tokens"] = tokens
        metrics["tokens/s"] = tokens / seconds["step"]
        metrics["padding"] = 1 - self.useful / max(1, self.computed)
        return metrics


# ------------------------------------------------------------------------------------ the folder


def load_data(args):
    """(training problems, held-out problems, exam, demonstrations). No held-out question is trained
    on, and none of the exam."""
    problems, held_out = load_split(args.data, args.eval_data, args.eval_size)
    exam = []
    examples = []
    if args.exam:
        trained = {problem.question for problem in problems}
        pairs = read_jsonl(args.exam, to_pair)
        # Of trained questions the critic has seen the answers.
        exam = [pair for pair in pairs if pair.problem.question not in trained]
        if len(exam) < len(pairs):
            print(f"{args.exam}: {len(pairs) - len(exam)} pairs left out, on questions in --data")
        if not exam:
            raise InputError(f"--exam {args.exam}: no pair is left")
        exam = exam[: args.eval_size // 2 * 2]
    if args.cold_start:
        unseen = {problem.question for problem in held_out}
        unseen |= {pair.problem.question for pair in exam}
        examples, left_out = load_demonstrations(args.cold_start, unseen)
        if left_out:
            print(f"{args.cold_start}: {left_out} demonstrations left out: held out")
    return problems, held_out, exam, examples


def open_run(args):
    """(the state saved in --out, the lock on it), (None, None) for a run that begins; refuses a
    folder that is in use."""
    out = Path(args.out)
    path = out / "resume.pt"
    if not path.exists():
        found = set(os.listdir(out)) if out.exists() else set()
        if found - BEFORE_CHECKPOINT:
            raise InputError(f"--out {out}: holds files but no resume.pt; name another folder")
        return None, None
    if not args.resume:
        raise InputError(f"--out {out}: holds a run; go on by --resume, or name another folder")
    lock = lock_folder(out)
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
            before = max(before, state["step"] - 1, value)
        if before != value and name not in MAY_CHANGE:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"--resume: the run in {out} has {flag} {before}, not {value}")
    return state, lock


def check_memory(args):
    """Say what the run needs of memory at its peak, and refuse what cannot fit, before a model is
    loaded. Sampling needs no more than learning: in place of the gradients it has packed weights.
    """
    try:
        model = without_weights(args.model)
        device = device_of(args.device)
        if device.type == "cuda":
            there = torch.cuda.mem_get_info(device)[1]
        else:
            there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except Exception:  # of a folder or a device that loading will name, or on Windows
        return
    count = model.num_parameters()
    kls = {"score": args.beta1 + args.beta2, "multi-turn": args.beta1, "star": 0, "pair-sft": 0}
    # Twice what a batch is allowed, which counts what matrices read and write, and not what lies
    # between them. On a GPU batches are cut until they fit; one completion is the least.
    batches = 2 * memory(model)
    tokens = most_tokens(model)
    if device.type == "cuda":
        batches *= args.max_new_tokens / tokens
    in_bf16 = device.type == "cuda" and args.precision != "fp32"  # with a copy of the weights
    needed = {  # bytes
        "weights, gradients, optimizer": (16 + 2 * in_bf16) * count,
        "reference": 4 * count * (kls.get(args.method, args.kl) > 0),
        "batches": batches,
        "logits": 16 * min(LOGITS, tokens * model.config.get_text_config().vocab_size),
        # With torch, of which a build for CUDA is larger, transformers, and a small model loaded.
        "program": (890 if torch.version.cuda else 450) << 20,
    }
    total = sum(needed.values())
    parts = [f"{what} {size / 1e9:.1f}" for what, size in needed.items()]
    line = f"{total / 1e9:.1f} of {there / 1e9:.1f} GB of memory: {'; '.join(parts)}"
    if total > there:
        raise InputError(
            f"--model {args.model} would need {line}; "
            "take a smaller one, no KL, or scale/ for several GPUs"
        )
    print(f"needs {line}")


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
    except OSError as error:
        raise InputError(f"--out {out}: another process is at work in it") from error
    return file


def save_state(out, state, model, optimizer):
    """Write resume.pt: aside, flushed to disk, renamed. At no moment is there half of one."""
    state = state | {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
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
    # Of a run that is extended: a model in the folder says that the run has ended.
    (out / "model.safetensors").unlink(missing_ok=True)
    (out / "run.json").write_text(json.dumps(state["flags"], indent=1) + "\n", encoding="utf-8")


@contextmanager
def signals_caught():
    """A list that gets the number of the first SIGINT or SIGTERM inside the block; the second
    leaves at once. What was in charge before is so again behind the block."""
    seen = []

    def on_signal(number, frame):
        if seen:
            sys.exit(128 + number)
        seen.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_row(out, row):
    """Every row of metrics comes through here: the place to hand it on to another logger."""
    write_jsonl(out / "metrics.jsonl", [row], "a")
