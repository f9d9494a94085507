"""Do the papers' claims hold on the toy? The protocol, its runs, the tables and the pictures.

    python -m figures.findings            prints findings.md, from findings.jsonl alone, and writes
                                          both pictures and runs.md
    python -m figures.findings --run      first the runs that are missing, two at a time on a
                                          thread each: hours, and it goes on where it was stopped

A claim: a number of one run, at one step, is greater than that of another. Runs are paired by seed:
the same questions in the same order. The interval is the mean difference's over seeds (95%, t). It
speaks of other seeds on this toy and these held-out problems, not of other models.
"""

import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from details import threads  # noqa: F401  # isort: skip (before torch)

import numpy as np
import torch
from tqdm import tqdm

from details.data import mean, read_jsonl, read_some, run_command, write_jsonl
from details.errors import InputError
from figures.chart import forest, line_charts
from rollout import load_policy
from toy import planted

FOLDER = Path(__file__).parent
LINES = FOLDER / "findings.jsonl"

# ---------------------------------------------------------------------------------- the protocol
#
# Runs, claims, steps, seeds, smallest differences and verdicts were fixed before these runs. What
# had been seen by then, and what has been changed since, stands in PROTOCOL below. The toy and its
# settings were chosen at seeds 100 to 103, which are not used here.

# Seeds: of what decides most, of the rest, of what takes long, and those nobody had seen.
ALL = range(32)
HALF = range(16)
FEW = range(8)
UNSEEN = range(17, 32)

# {name: flags}; all else is the toy's default.
MAIN = {
    # It passes through what 30 steps give; 60 are as many samples as two attempts take, and 90 are
    # to take as many seconds as gc-rl.
    "g-rl": "--method g-rl --steps 90 --eval-every 15",
    "gc-rl": "--method gc-rl --eval-every 15",
    "c-rl": "--method c-rl --eval-every 15",
    "multi-turn": "--method multi-turn --eval-every 15",
    "score": "--method score --eval-every 15",
}
# Most answers are wrong. Not divided by the deviation: else the constants of eq. 3 cancel.
HARD = "--data toy/hard.jsonl --eval-data toy/hard_held_out.jsonl --exam toy/hard_exam.jsonl"
HARDER = {
    "hard, filter": f"--method gc-rl {HARD} --no-std",
    "hard, eq. 3": f"--method gc-rl {HARD} --no-std --balance reweight",
    "hard, unfiltered": f"--method gc-rl {HARD} --no-std --balance none",
    "hard, g-rl": f"--method g-rl {HARD} --no-std --eval-every 30",
}
ENDS = "--eval-every 30"
SCORE = f"--method score {ENDS}"
PLAIN = f"--method gc-rl {ENDS} --no-std"
VARIANTS = {
    "c-rl, dynamic": f"--method c-rl {ENDS} --critique-data dynamic",
    "gc-rl, static": f"--method gc-rl {ENDS} --critique-data static",
    "star": f"--method star {ENDS}",
    "pair-sft": f"--method pair-sft {ENDS}",
    "score, no Stage I": f"{SCORE} --stage1-steps 0",
    "gc-rl, eq. 5": f"{PLAIN} --reward-right 0.6 --reward-wrong 0.8",
    "gc-rl, eq. 6": f"{PLAIN} --reward-right 0.8 --reward-wrong 0.6",
    "c-rl, eq. 4": f"--method c-rl {ENDS} --denoise 1",
    "gc-rl, eq. 4": f"--method gc-rl {ENDS} --denoise 1",
}
# What decides no finding comes last.
GROUPS = {
    "gc-rl, no std": PLAIN,
    "gc-rl, question": f"--method gc-rl {ENDS} --group question",
    "gc-rl, batch": f"--method gc-rl {ENDS} --group batch",
}
SCALES = {  # a weight on second attempts, see `score` in train.py: not the paper's ablation
    "score, alpha 0": f"{SCORE} --alpha 0",
    "score, alpha 10": f"{SCORE} --alpha 10",
}
LONG = {"g-rl, long": "--method g-rl --steps 200 --eval-every 20"}  # as many seconds as score
ORDER = [  # row after row; inside a row seed by seed: if it is stopped, pairs are left
    (MAIN | HARDER | VARIANTS, HALF),
    (MAIN, range(16, 32)),
    (GROUPS, HALF),
    (LONG, FEW),
    (SCALES, HALF),
]
RUNS = MAIN | HARDER | VARIANTS | GROUPS | LONG | SCALES
USUAL = 1.5  # minutes of a run of which none has ended

# The smallest differences that would matter: in answers and attempts, else in what is named.
ANSWERS = 0.03
CRITICS = 0.02
DELTA = 0.05


class Claim(NamedTuple):
    """`metric` of `run` at `step` is greater than of `other` at `other_step`.

    other_step: or `samples` or `seconds`: where it has cost as much. Where other is `above` or
    `below` the claim is about the run alone, and a threshold.
    """

    metric: str
    run: str
    other: str
    seeds: range
    step: int = 30
    other_step: int | str = 30
    other_metric: str = ""  # where it is another
    threshold: float | None = None


# One or two claims decide a finding.
FINDINGS = {
    "F1": (
        "Training critiques alone lifts answers, but less than training answers does",
        Claim("generation", "c-rl", "c-rl", ALL, other_step=0),
        Claim("generation", "g-rl", "c-rl", ALL),
    ),
    "F2": (
        "Training both gives better answers than training answers alone, in as many steps (with "
        "nearly twice the samples)",
        Claim("generation", "gc-rl", "g-rl", ALL),
    ),
    "F3": (
        "Training both gives a better critic than training critiques alone",
        Claim("critique", "gc-rl", "c-rl", ALL),
    ),
    "F4": (
        "Pairs: the filter is better than eq. 3, which is better than no filter",
        Claim("critique", "hard, filter", "hard, eq. 3", HALF),
        Claim("critique", "hard, eq. 3", "hard, unfiltered", HALF),
    ),
    "F5": (
        "Denoising, eq. 4, helps under gc-rl and under c-rl",
        Claim("critique", "gc-rl, eq. 4", "gc-rl", HALF),
        Claim("critique", "c-rl, eq. 4", "c-rl", HALF),
    ),
    "F6": (
        "Dynamic pairs are better for gc-rl, static ones for c-rl",
        Claim("critique", "gc-rl", "gc-rl, static", HALF),
        Claim("critique", "c-rl", "c-rl, dynamic", HALF),
    ),
    "F7": (
        "Eq. 5 leans to precision, eq. 6 to recall",
        Claim("critique_precision", "gc-rl, eq. 5", "gc-rl, eq. 6", HALF),
        Claim("critique_recall", "gc-rl, eq. 6", "gc-rl, eq. 5", HALF),
    ),
    "F8": (
        "While most answers are wrong, a critic of unfiltered pairs drifts to `wrong`",
        Claim("critique_p1", "hard, unfiltered", "hard, unfiltered", HALF, step=0, other_step=10),
        Claim("critique_p2", "hard, unfiltered", "hard, unfiltered", HALF, step=10, other_step=0),
    ),
    "S1": (
        "Before training a second attempt is no better than the first",
        Claim("delta", "score", "below", range(1), step=0, threshold=DELTA),
    ),
    "S2": (
        "Supervised learning of corrections does not teach self-correction",
        Claim("delta", "star", "below", HALF, threshold=DELTA),
        Claim("delta", "pair-sft", "below", HALF, threshold=DELTA),
    ),
    "S3": (
        "Plain multi-turn RL teaches no self-correction: second attempts go on repeating the first",
        Claim("delta", "multi-turn", "below", ALL, threshold=DELTA),
        Claim("kept", "multi-turn", "above", ALL, threshold=0.9),
    ),
    "S4": (
        "SCoRe's second attempts are better; without Stage I less so",
        Claim("t2", "score", "multi-turn", ALL),
        Claim("t2", "score", "score, no Stage I", HALF),
    ),
    "S5": (
        "Eight answers, each corrected once, vote better than sixteen that are not",
        Claim("vote, corrected", "score", "score", HALF, other_metric="vote"),
    ),
}
OTHERS = {
    "Which group is a reward compared with? The papers leave it open": [
        Claim(metric, "gc-rl", group, HALF)
        for group in GROUPS
        for metric in ("generation", "critique")
    ],
    "The headline at seeds 17 to 31, which nobody had seen": [
        Claim("generation", "gc-rl", "g-rl", UNSEEN),
        Claim("critique", "gc-rl", "g-rl", UNSEEN),
    ],
    "At equal cost": [
        Claim("generation", "gc-rl", "g-rl", ALL, other_step="samples"),
        Claim("generation", "gc-rl", "g-rl", ALL, other_step="seconds"),
        Claim("critique", "gc-rl", "g-rl", ALL, other_step="samples"),
        Claim("t2", "score", "g-rl", ALL, other_step="samples", other_metric="generation"),
        Claim("t2", "score", "g-rl, long", FEW, other_step="seconds", other_metric="generation"),
    ],
    "Right for the right reason: do critics find the error?": [
        Claim("critique_sound", "c-rl", "c-rl", ALL, other_step=0),
        Claim("critique_sound", "gc-rl", "gc-rl", ALL, other_step=0),
        Claim("critique_sound", "g-rl", "g-rl", ALL, other_step=0),
        Claim("critique_sound", "c-rl", "g-rl", ALL),
        Claim("critique_sound", "gc-rl", "g-rl", ALL, other_step="samples"),
    ],
    "What makes GC-RL's critic better than C-RL's?": [
        Claim("critique", "gc-rl", "c-rl, dynamic", HALF),
        Claim("critique", "gc-rl, static", "c-rl", HALF),
        Claim("critique", "g-rl", "c-rl", ALL),
    ],
    "Where most answers are wrong": [
        Claim("generation", "hard, unfiltered", "below", HALF, step=10, threshold=0.5),
        Claim("critique_p2", "hard, unfiltered", "hard, filter", HALF, step=10, other_step=10),
        Claim("critique_p1", "hard, filter", "hard, unfiltered", HALF, step=10, other_step=10),
        Claim("generation", "hard, filter", "hard, eq. 3", HALF),
        Claim("generation", "hard, eq. 3", "hard, unfiltered", HALF),
        Claim("generation", "hard, filter", "hard, g-rl", HALF),
        Claim("critique", "hard, filter", "hard, g-rl", HALF),
    ],
    "SCoRe's first attempts, and delta": [
        Claim("t1", "score", "multi-turn", ALL),
        Claim("t1", "score", "score, no Stage I", HALF),
        Claim("delta", "score", "score, no Stage I", HALF),
    ],
}
MORE = {  # in runs.md
    "Beside the findings": [
        Claim("generation", "gc-rl, eq. 4", "gc-rl", HALF),
        Claim("generation", "c-rl, eq. 4", "c-rl", HALF),
        Claim("generation", "gc-rl", "gc-rl, static", HALF),
        Claim("generation", "c-rl", "c-rl, dynamic", HALF),
    ],
    "Seen in the table below, then asked: two methods that pay for no critique": [
        Claim("critique", "score", "gc-rl", ALL),
        Claim("critique", "score", "multi-turn", ALL),
        Claim("generation", "multi-turn", "gc-rl", ALL),
    ],
    "Alpha, which here is only a weight on second attempts: not the paper's ablation": [
        Claim("delta", "score", "score, alpha 0", HALF),
        Claim("delta", "score, alpha 10", "score", HALF),
        Claim("t2", "score", "score, alpha 0", HALF),
        Claim("t2", "score, alpha 10", "score", HALF),
    ],
}
# {finding or heading: a sentence why, as far as the runs tell}
WHY = {
    "F2": "The critiques are samples, too: see below what is left at equal cost.",
    "F3": "With more samples, and with pairs of its own policy: see below.",
    "F4": "By step 10 half of the answers are right; then unfiltered pairs are about balanced.",
    "F6": "Both methods learn more from pairs of their own policy.",
    "F8": "Both shares rise together: the critic learns to check. By step 10 about half of the "
    "answers are right, so what the paper describes had little time.",
    "S1": "Greedily it never looks again (sampled, once in twelve): it repeats the first attempt.",
    "S2": "At the start hardly any second attempt mends a first one, so there is little for STaR "
    "to learn but to repeat; Pair-SFT spoils more right answers than it mends wrong ones.",
    "S3": "It begins by repeating, and where the first attempt is right, that earns all there is.",
    "S4": "Most of what Stage I adds to delta comes from worse first attempts, see below.",
    "S5": "It is delta again: votes lift neither first nor second attempts above greedy ones.",
    "At equal cost": "At the other run's first evaluated step by which, in the median, it has cost "
    "as much, else at its last (200). Seconds, by pairs that one processor made, are those of "
    "shared machines at different hours: go by samples.",
    "Right for the right reason: do critics find the error?": "Of the wrong responses that are "
    "judged wrong, those whose first wrong step the critique objects to (`toy/sound.py`). A critic "
    "that judges more of them wrong is asked about harder ones, too.",
    "What makes GC-RL's critic better than C-RL's?": "These claims were added when half of the "
    "runs had been seen. `c-rl, dynamic` takes as many samples as gc-rl.",
    "What is recalled": "Is this why seeds differ so much? In part: where more facts are recalled, "
    "more answers are right. But at the worst seeds answers lose their format, see [why seeds "
    "differ](results.md#why-seeds-differ).",
}

# Numbers of an evaluation that are kept, and what they are called here.
WORDS = {
    "generation": "answers",
    "critique": "critiques",
    "t1": "first attempts",
    "t2": "second attempts",
    "delta": "delta",
    "kept": "wrong answers given again",
    "revised": "revised answers",
    "critique_sound": "sound reasons",
    "critique_p1": "right responses judged right",
    "critique_p2": "wrong responses judged wrong",
    "critique_precision": "precision",
    "critique_recall": "recall",
    "i_to_c": "wrong to right",
    "c_to_i": "right to wrong",
    "size": "problems",
    "vote": "votes of answers",
    "vote, corrected": "votes of corrected answers",
}
SHOWN = ("generation", "critique", "critique_sound", "t2", "delta", "kept", "revised")
KINDS = ("sure", "blind", "shaky", "doubted")  # of facts
WHO = ("both", "only checking", "only solving", "neither")  # has learned a fact
PROBED = ("g-rl", "c-rl", "gc-rl")  # runs of which is asked what they recall
CURVES = [
    ("generation", ("g-rl", "c-rl", "gc-rl")),
    ("critique", ("g-rl", "c-rl", "gc-rl")),
    ("revised", ("g-rl", "c-rl", "gc-rl")),
    ("generation", ("score", "multi-turn")),
    ("t2", ("score", "multi-turn")),
    ("delta", ("score", "multi-turn")),
]

# ---------------------------------------------------------------------------------------- the runs


def smallest(claim):
    """The smallest difference that would matter; a threshold has none beside it."""
    if claim.threshold is not None:
        return 0
    if claim.metric.startswith("critique"):
        return CRITICS
    return DELTA if claim.metric == "delta" else ANSWERS


def command_of(run, seed):
    return f"python train.py {RUNS[run]} --seed {seed}"


def processor():
    """The name of the processor: another one rounds otherwise."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor()
    words = []
    for line in file.read_text().split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("cpu family", "model", "model name"):
            words.append(value.strip())
    return " ".join(words)


def read_lines():
    """{command: line of a run}. Of a run that two processors have carried out the first counts."""
    lines = {}
    for line in read_some(LINES):
        lines.setdefault(line["command"], line)
    return lines


def claims():
    """All of them: those that decide, then the others."""
    found = []
    for _, *deciding in FINDINGS.values():
        found += deciding
    for others in (OTHERS | MORE).values():
        found += others
    return found


def missing_runs(lines):
    """The runs without which a claim lacks a pair, [(run, seed), ...], in their order."""
    missing = set()
    for claim in claims():
        for seed in claim.seeds:
            for run in (claim.run, claim.other):
                if run in RUNS and command_of(run, seed) not in lines:
                    missing.add((run, seed))
    todo = []
    for group, seeds in ORDER:
        for seed in seeds:
            todo += [(run, seed) for run in group if (run, seed) in missing]
    return todo


def hours_of(lines, todo):
    """How long the runs take one core: as long as those of their kind took, as far as known."""
    took = {}
    for line in lines.values():
        if line["processor"] == processor():
            took.setdefault(line["run"], []).append(line["minutes"])
    minutes = 0.0
    for run, _ in todo:
        minutes += np.median(took[run]) if run in took else USUAL
    return minutes / 60


def show_forecast(lines):
    """Say what is missing, and how long it takes; not in the tables, which are printed."""
    todo = missing_runs(lines)
    for group, seeds in ORDER:
        part = [(run, seed) for run, seed in todo if run in group and seed in seeds]
        if part:
            hours = f"{hours_of(lines, part):.1f} hours of one core"
            print(f"missing: {len(part)} of {'; '.join(group)}: {hours}", file=sys.stderr)
    print(f"missing: {hours_of(lines, todo):.1f} hours of one core in all", file=sys.stderr)


def carry_out(run, seed):
    """Train, and return what is kept of the run as a line."""
    begin = time.time()
    commit = execute(["git", "rev-parse", "--short", "HEAD"]).strip()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [sys.executable, *shlex.split(command_of(run, seed))[1:], "--out", str(out)]
        execute(words)
        line = {
            "run": run,
            "seed": seed,
            "command": command_of(run, seed),
            "commit": commit,
            "processor": processor(),
            "torch": torch.__version__,
            "evaluations": [],
        }
        samples = 0
        seconds = 0.0
        for row in read_jsonl(out / "metrics.jsonl", dict):
            samples += row.get("samples", 0)
            seconds += row.get("seconds/step", 0.0)
            if "eval/generation" in row:
                numbers = {"step": row["step"], "samples": samples, "seconds": round(seconds, 1)}
                for key, value in evaluated(row).items():
                    if key in WORDS:
                        numbers[key] = value if value is None else round(value, 4)
                line["evaluations"].append(numbers)
        if run == "score" and seed in HALF:
            # S5: eight answers and a correction of each, against sixteen answers.
            words = f"-m figures.votes {out} --n 16 --json --out {out}/votes.svg"
            printed = execute([sys.executable, *words.split()])
            votes = json.loads(printed.splitlines()[-1])
            last = line["evaluations"][-1]
            last["vote, corrected"] = votes["vote/parallel, corrected"]["16"]
            last["vote"] = votes["vote/parallel"]["16"]
        if run in PROBED:
            line["recalled"] = planted.summary(recalled("toy"), recalled(out))
    return line | {"minutes": round((time.time() - begin) / 60, 2)}


@functools.cache
def recalled(model):
    """What a model recalls of the facts, in solving and in checking."""
    return planted.recalled(*load_policy(model, "cpu"), ("solving", "checking"))


def evaluated(row):
    """The numbers of an evaluation in a row of metrics.jsonl."""
    numbers = {}
    for key, value in row.items():
        if key.startswith("eval/"):
            numbers[key.removeprefix("eval/")] = value
    return numbers


def execute(words):
    """What a command prints; its last words as an error if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=FOLDER.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        [*_, last] = ["no message", *done.stderr.splitlines()]
        raise InputError(f"{shlex.join(words)}: {last}")
    return done.stdout


def carry_out_missing():
    """Run what is missing, two at a time; each is a line as soon as it has ended."""
    torch.set_num_threads(1)
    todo = missing_runs(read_lines())
    bar = tqdm(total=len(todo), desc="runs")
    one_at_a_time = threading.Lock()

    def carry_out_one(job):
        line = carry_out(*job)
        with one_at_a_time:
            write_jsonl(LINES, [line], "a")
            left = hours_of(read_lines(), todo[bar.n + 1 :])
            bar.set_postfix_str(f"{left / 2:.1f} hours left; {line['command']}")
            bar.update()

    with bar, ThreadPoolExecutor(2) as pool:
        try:
            list(pool.map(carry_out_one, todo))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, nothing new is begun


# -------------------------------------------------------------------------------- what came out


def number(line, step, metric):
    """A number of a run at one of its evaluations."""
    [found] = [row for row in line["evaluations"] if row["step"] == step]
    return found[metric]


def runs_of(lines, name):
    """The lines of a run as it is now, one for each seed."""
    found = []
    for command, line in lines.items():
        if command == command_of(name, line["seed"]):
            found.append(line)
    return found


def pairs_of(lines, claim):
    """Both runs of each seed that has them. A run alone is paired with itself."""
    other_name = claim.other if claim.other in RUNS else claim.run
    pairs = []
    for seed in claim.seeds:
        run = lines.get(command_of(claim.run, seed))
        other = lines.get(command_of(other_name, seed))
        if run and other:
            pairs.append((run, other))
    return pairs


def step_of_other(pairs, claim):
    """The step of the other run, and how many times the run's cost it has taken by then, the median
    over pairs of one processor, if there are any: where it is to have cost as much, the first
    evaluated step at which it has, else its last one."""
    cost = claim.other_step
    if cost not in ("samples", "seconds"):
        return cost, None
    pairs = [(a, b) for a, b in pairs if a["processor"] == b["processor"]] or pairs
    for row in pairs[0][1]["evaluations"]:
        step = row["step"]
        spent = [number(b, step, cost) / number(a, claim.step, cost) for a, b in pairs]
        if np.median(spent) >= 1:
            break
    return step, np.median(spent)


def differences(lines, claim):
    """By how much the claim holds, for each seed of which there is a pair with both numbers: where
    nothing is called right, say, there is no precision."""
    found = []
    pairs = pairs_of(lines, claim)
    if not pairs:
        return []
    step, _ = step_of_other(pairs, claim)
    sign = -1 if claim.other == "below" else 1
    for run, other in pairs:
        first = number(run, claim.step, claim.metric)
        second = claim.threshold
        if second is None:
            second = number(other, step, claim.other_metric or claim.metric)
        if first is not None and second is not None:
            found.append(sign * (first - second))
    return found


@functools.cache
def t_quantile(freedom):
    """Where 95% of Student's distribution lie between -t and t: a sum over its density, with t =
    sqrt(freedom) tan(angle)."""
    angle = np.linspace(0, math.pi / 2, 1_000_000)
    total = np.cumsum(np.cos(angle) ** (freedom - 1))
    quantile = angle[np.searchsorted(total, 0.95 * total[-1])]
    return math.sqrt(freedom) * math.tan(quantile)


def interval(values):
    """(mean, half of the width of its 95% interval)."""
    count = len(values)
    deviation = np.std(values, ddof=1)
    return float(np.mean(values)), float(t_quantile(count - 1) * deviation / math.sqrt(count))


class Estimate(NamedTuple):
    """By how much a claim holds, with its 95% interval, and of how many."""

    middle: float
    low: float
    high: float
    of: str


def estimate(lines, claim):
    """The Estimate of a claim; None where fewer than two seeds have been run."""
    values = differences(lines, claim)
    if values and claim.step == 0 and claim.threshold is not None:
        # The start is one policy: all that varies is the problems. To the sum, whose mean is delta,
        # each adds 1, -1 or 0. What never happens is below 3 in so many (95%).
        start = runs_of(lines, claim.run)[0]["evaluations"][0]
        size = start["size"]
        variance = start["i_to_c"] + start["c_to_i"] - start["delta"] ** 2
        half = max(1.96 * math.sqrt(variance / size), 3 / size)
        return Estimate(values[0], values[0] - half, values[0] + half, f"{size} problems")
    if len(values) < 2:
        return None
    middle, half = interval(values)
    of = str(len(values))
    if len(values) < len(claim.seeds):
        of += f" of {len(claim.seeds)}"
    return Estimate(middle, middle - half, middle + half, of)


def verdict(found, least):
    """What an Estimate says of a claim whose smallest difference that would matter is `least`: 0
    where it has a threshold."""
    if found is None:
        return "not run yet"
    if -least < found.low and found.high < least:
        return f"does not hold here: smaller than {least}"
    if found.low > 0:
        return "holds here"
    if found.high < 0:
        past = "below 0" if least else "past the threshold"
        return f"does not hold here: {past}"
    return "not decided"


def decide(verdicts):
    """What the verdicts on its claims say of a finding."""
    for begin in ("not run yet", "does not hold here", "not decided"):
        for words in verdicts:
            if words.startswith(begin):
                return words
    return "holds here"


def at(step):
    return {0: " at the start", 30: ""}.get(step, f" at step {step}")


def words_of(lines, claim):
    """A claim in words: `answers: c-rl above c-rl at the start`."""
    first = f"{WORDS[claim.metric]}: {claim.run}{at(claim.step)}"
    if claim.threshold is not None:
        return f"{first} {claim.other} {claim.threshold}"
    other = claim.other
    if claim.other_metric:
        other = f"{WORDS[claim.other_metric]} of {other}"
    if claim.other_step not in ("samples", "seconds"):
        return f"{first} above {other}{at(claim.other_step)}"
    pairs = pairs_of(lines, claim)
    if not pairs:
        return f"{first} above {other} after as many {claim.other_step}"
    step, times = step_of_other(pairs, claim)
    return f"{first} above {other} after {times:.2f} times as many {claim.other_step} (step {step})"


def show_estimate(found, claim):
    """By how much a claim holds; of one with a threshold the number itself."""
    if found is None:
        return "-"
    if claim.threshold is None:
        return f"{found.middle:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    sign = -1 if claim.other == "below" else 1
    low, middle, high = sorted(claim.threshold + sign * distance for distance in found[:3])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def row_of(lines, claim):
    """A claim in a table: words, by how much it holds, seeds, verdict."""
    found = estimate(lines, claim)
    of = found.of if found else "0"
    shown = show_estimate(found, claim)
    return [words_of(lines, claim), shown, of, verdict(found, smallest(claim))]


HEAD = f"""# Do the papers' claims hold on the toy?

Made by `python -m figures.findings > figures/findings.md` from the lines of `findings.jsonl`; it
also writes the pictures and [runs.md](runs.md): more claims, and what every kind of run ends with.
F1 to F8 are claims of GC-RL (arXiv 2602.22765), S1 to S5 of SCoRe (arXiv 2409.12917). Training is
by 30 steps of 32 questions, if nothing else is said: `g-rl` of answers, `c-rl` of critiques,
`gc-rl` of both, `multi-turn` and `score` of two attempts. Answers and second attempts are greedy,
on 512 held-out problems; critics judge responses to such problems, half of them right.

`+0.050 (+0.011 to +0.088)`, say, is a difference, the mean over pairs of runs of the same seed, and
its 95% interval. What would matter, m (grey in the picture), is {ANSWERS} in answers and attempts,
{CRITICS} in critics' numbers, {DELTA} in delta (second attempts minus first ones). A claim

- **does not hold here** if the whole interval is below 0, or between -m and m;
- else **holds here** if the whole interval is above 0, however little;
- else is **not decided**.

A finding holds if all of its claims do, and does not hold if one of them does not. A claim about
one kind of run alone is held against a threshold in place of 0, and no difference is too small: the
table has the number itself, the picture its distance from the threshold. S1's interval is over
problems, since all runs start alike. Where a paper says it of answers and of critics, critics
decide, since they vary less between seeds; answers stand below or in runs.md.

A run's name says in what it departs from its method's usual run: `static` and `dynamic` pairs by
`--critique-data`, `no std`, `question` and `batch` by `--no-std` and `--group`, `unfiltered` by
`--balance none`, `no Stage I` by `--stage1-steps 0`; `long` has 200 steps. Runs named `hard` have
questions most of which the toy answers wrong at the start (`python -m toy.make --hard`); all but
`hard, g-rl` are of gc-rl. They and eqs. 5 and 6 do not divide advantages by the deviation, which
would cancel the constants of eqs. 3, 5 and 6.

![by how much the claims hold](findings.svg)
"""

PROTOCOL = f"""
## What had been seen before

Claims and verdicts were fixed before these runs, but by people who had seen seeds 0 to 16 of g-rl
and gc-rl, and 0 to 7 of most others, on earlier code. Repeated, seeds 0 to 7 of g-rl and gc-rl came
out much the same: they are hardly new evidence. With `hard` nothing had been seen but a trial at
seed 100. When some seeds of g-rl and gc-rl had been run, S4's and F8's claims and F1's and S3's
titles were put nearer to the papers' words, and some claims that decide nothing were added. Seeds 0
to 5 of c-rl, `c-rl, eq. 4`, `gc-rl, static` and pair-sft were made twice, since the code had come
to deal out their pairs otherwise; the second runs count. By the first F5 was not decided.

Where nothing makes a difference, one interval in twenty leaves 0 out: some {len(claims()) // 20} of
the {len(claims())} here and in runs.md. Read again and again while runs come in, more do.
"""


def show_heading(title):
    print(f"\n## {title}\n")
    if title in WHY:
        print(f"{WHY[title]}\n")


def show_findings(lines):
    """Print the table of the findings, and draw it."""
    print("| | finding | here | claims, and by how much they hold | seeds | why |")
    print("| --- " * 6 + "|")
    drawn = []
    for finding, (title, *deciding) in FINDINGS.items():
        drawn.append((f"{finding}. {title}",))
        verdicts = []
        told = []
        of = []
        complete = True
        for claim in deciding:
            words, shown, seeds, said = row_of(lines, claim)
            verdicts.append(said)
            told.append(f"{words}: {shown}, {said}")
            of.append(seeds)
            complete = complete and len(pairs_of(lines, claim)) == len(claim.seeds)
            found = estimate(lines, claim)
            short = said.removeprefix("does not hold here: ")
            drawn.append((words, short, found and found[:3], smallest(claim)))
        decided = decide(verdicts)
        if not complete and decided != "not run yet":
            decided += " so far"
        why = WHY.get(finding, "") if decided != "not run yet" else ""
        cells = [finding, title, f"**{decided}**", "<br>".join(told), "<br>".join(of), why]
        print(f"| {' | '.join(cells)} |")
    forest(FOLDER / "findings.svg", drawn, "By how much the claims hold: means, 95% intervals")


def show_rounding(lines):
    """Print how far answers end apart where two processors have carried out the same run."""
    apart = []
    for line in read_some(LINES):
        first = lines[line["command"]]
        if line["processor"] != first["processor"]:
            apart.append(distance_of_ends(first, line))
    if not apart:
        return
    seeds = [distance_of_ends(*pair) for pair in combinations(runs_of(lines, "g-rl"), 2)]
    runs = f"{len(apart)} runs that both have made (the first counts)"
    away = f"{mean(apart):.3f} apart ({max(apart):.3f} at most)"
    print("Some pairs are of two processors, which round differently. By that answers", end=" ")
    print(f"of {runs} end {away}; those of two seeds of g-rl end {mean(seeds):.3f} apart.")


def distance_of_ends(a, b):
    """How far the answers of two runs end apart."""
    return abs(a["evaluations"][-1]["generation"] - b["evaluations"][-1]["generation"])


def show_others(lines, others):
    """Print what decides no finding."""
    for title, asked in others.items():
        show_heading(title)
        print("| claim | by how much it holds | seeds | here |")
        print("| --- " * 4 + "|")
        for claim in asked:
            print(f"| {' | '.join(row_of(lines, claim))} |")


RECALLED = """The probability of the right digit in solving / in checking, by kind of fact as
[planted](results.md#what-is-planted-in-the-toy), at the start and at the ends of runs: means over
seeds, and the worst and the best seed. *Apart*: how differently solving and checking recall what
the teacher is unsure of; 0 if solving recalls as checking does. The correlations with the answers
over seeds are those of *apart* and of *both*; in brackets what chance exceeds once in twenty. The
last columns: of the facts that solving gets wrong at the start, how many come right, at least every
other time, in both, in checking only, in solving only, in neither. (Checking, which is taught to
get them right every other time, has half of them at once.) Runs of g-rl end after 90 steps, others
after 30: their rows cannot be compared.
"""


def show_recalled(lines):
    """Print what the runs recall of the facts, in solving and in checking."""
    show_heading("What is recalled")
    print(RECALLED)
    heads = ["run", "answers", *KINDS, "apart", "correlations", *WHO]
    print(f"| {' | '.join(heads)} |")
    print("| --- " * len(heads) + "|")
    for name in PROBED:
        runs = [line for line in runs_of(lines, name) if "recalled" in line]
        runs.sort(key=lambda line: line["evaluations"][-1]["generation"])
        if runs:
            if name == PROBED[0]:
                show_recalled_by("at the start", runs, 0)
            show_recalled_by(f"{name}: {len(runs)} seeds", runs, -1)
            show_recalled_by(f"{name}: seed {runs[0]['seed']}", runs[:1], -1)
            show_recalled_by(f"{name}: seed {runs[-1]['seed']}", runs[-1:], -1)


def show_recalled_by(label, runs, when):
    """Print a row, means over runs. when: 0 at the start, -1 at the end."""
    answers = [line["evaluations"][when]["generation"] for line in runs]
    cells = [label, f"{mean(answers):.3f}"]
    for kind in KINDS:
        solving = mean(line["recalled"][kind]["solving"][when] for line in runs)
        checking = mean(line["recalled"][kind]["checking"][when] for line in runs)
        cells.append(f"{solving:.2f} / {checking:.2f}")
    apart = [line["recalled"]["apart"][when] for line in runs]
    cells.append(f"{mean(apart):.2f}")
    cells.append("")
    if when and len(runs) > 2:
        t = t_quantile(len(runs) - 2)
        chance = t / math.sqrt(len(runs) - 2 + t**2)
        both = [line["recalled"]["learned"]["both"][when] for line in runs]
        of_apart = np.corrcoef(answers, apart)[0, 1]
        of_both = np.corrcoef(answers, both)[0, 1]
        cells[-1] = f"{of_apart:+.2f}, {of_both:+.2f} ({chance:.2f})"
    for who in WHO:
        cells.append(f"{mean(line['recalled']['learned'][who][when] for line in runs):.1f}")
    print(f"| {' | '.join(cells)} |")


RUNS_HEAD = """# What stands beside the findings

Written by `python -m figures.findings`, with [findings.md](findings.md), which has the words.

![answers, critiques and attempts, step by step](methods.svg)
"""
COSTS = """Means over seeds (least to greatest). Costs are medians and leave out evaluations and the
1,280 static responses of c-rl, of gc-rl with static pairs and of pair-sft; seconds are those of
shared machines, which are not equally fast or busy.
"""


def show_ends(lines):
    """Print what every kind of run starts and ends with; of these are the numbers of README."""
    show_heading("What every kind of run ends with")
    print(COSTS)
    heads = [WORDS[metric] for metric in SHOWN]
    print(f"| run | seeds | {' | '.join(heads)} | samples | seconds | commits |")
    print("| --- " * (5 + len(heads)) + "|")
    asked = [(name, step) for name in RUNS for step in (30, 90, 200)]
    for name, step in [("score", 0), *asked]:
        runs = runs_of(lines, name)
        runs = [line for line in runs if step in [row["step"] for row in line["evaluations"]]]
        if runs:
            cells = [f"{name}{at(step)}", str(len(runs))]
            for metric in SHOWN:
                cells.append(spread([number(line, step, metric) for line in runs]))
            for cost in ("samples", "seconds"):
                cells.append(f"{np.median([number(line, step, cost) for line in runs]):,.0f}")
            cells.append(", ".join(sorted({line["commit"] for line in runs})))
            print(f"| {' | '.join(cells)} |")


def spread(values):
    """Mean (least to greatest) of the values that are there."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    middle = round(mean(values), 6) + 0.0  # without what rounding leaves, also before a 0
    return f"{middle:.3f} ({min(values):.3f} to {max(values):.3f})"


def draw_curves(lines):
    """The curves of both papers, with bands from the least to the greatest seed."""
    charts = []
    for metric, names in CURVES:
        series = {}
        for name in names:
            runs = runs_of(lines, name)
            label = f"{name}, {len(runs)} seeds"
            series[label] = []
            for line in runs:
                points = [(row["step"], row[metric]) for row in line["evaluations"]]
                series[label].append([point for point in points if point[0] <= 30])
        charts.append((WORDS[metric], "step", series))
    line_charts(FOLDER / "methods.svg", charts, "On 512 held-out problems and an exam, greedy")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="first run what is missing")
    args = parser.parse_args(argv)
    show_forecast(read_lines())
    if args.run:
        carry_out_missing()
    lines = read_lines()
    print(HEAD)
    missing = len(missing_runs(lines))
    if missing:
        planned = sum(len(group) * len(seeds) for group, seeds in ORDER)
        print(
            f"**{missing} of the {planned} runs are still to be made**: `7 of 16` is not final.\n"
        )
    show_findings(lines)
    print(PROTOCOL, end="")
    show_rounding(lines)
    show_others(lines, OTHERS)
    show_recalled(lines)
    with (FOLDER / "runs.md").open("w", encoding="utf-8") as file, redirect_stdout(file):
        print(RUNS_HEAD, end="")
        show_others(lines, MORE)
        show_ends(lines)
    if lines:
        draw_curves(lines)


if __name__ == "__main__":
    run_command(main)
