"""Do the papers' claims hold on the toy? The protocol, its runs, the table and the pictures.

    python -m figures.findings            table and pictures, from figures/findings.jsonl alone
    python -m figures.findings --run      first the runs that are missing, two at a time on a
                                          thread each: hours, and it goes on where it was stopped

A claim: a number of one run, at one step, is greater than that of another. Runs are paired by seed:
the same questions in the same order. The interval is the mean difference's over seeds (95%, t). It
speaks of other seeds on this toy and these 512 held-out problems, not of other models.
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
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from details import threads  # noqa: F401  # isort: skip (before torch)

import numpy as np
import torch
from tqdm import tqdm

from details.data import mean, run_command
from details.errors import InputError
from figures.chart import forest, line_charts

FOLDER = Path(__file__).parent
LINES = FOLDER / "findings.jsonl"

# ---------------------------------------------------------------------------------- the protocol
#
# Seeds, steps and checkpoints were fixed before any of these runs; the toy and its settings were
# chosen at seeds 100 to 103, which are not used here.

SCORE = "--method score --eval-every 5"
RUNS = {  # {name: flags}; all else is the toy's default
    "g-rl": "--method g-rl --steps 60",  # it passes through what 30 steps give
    "gc-rl": "--method gc-rl",
    "c-rl": "--method c-rl",
    "multi-turn": "--method multi-turn --eval-every 5",
    "score": SCORE,
    "score, no Stage I": f"{SCORE} --stage1-steps 0",
    "score, alpha 0": f"{SCORE} --alpha 0",
    "score, alpha 10": f"{SCORE} --alpha 10",
    "gc-rl, any pairs": "--method gc-rl --balance none",
    "gc-rl, eq. 4": "--method gc-rl --denoise 1",
    "gc-rl, static": "--method gc-rl --critique-data static",
    "c-rl, any pairs": "--method c-rl --balance none",
    "c-rl, eq. 4": "--method c-rl --denoise 1",
    "c-rl, dynamic": "--method c-rl --critique-data dynamic",
    "star": "--method star",
    "pair-sft": "--method pair-sft",
}
# The default compares inside a prompt and divides by the deviation: there the constants of eqs. 3,
# 5 and 6 cancel. These are the other ways.
GROUPS = {
    "prompt, no std": "--group prompt --no-std",
    "question": "--group question",
    "question, no std": "--group question --no-std",
    "batch": "--group batch",
    "batch, no std": "--group batch --no-std",
}
EQUATIONS = {
    "eq. 2": "",
    "eq. 2, any pairs": " --balance none",
    "eq. 3, any pairs": " --balance reweight",
    "eq. 5": " --reward-right 0.6 --reward-wrong 0.8",
    "eq. 6": " --reward-right 0.8 --reward-wrong 0.6",
}
for group, flags in GROUPS.items():
    for equation, more in EQUATIONS.items():
        RUNS[f"{group}: {equation}"] = flags + more

FINDINGS = {
    "F1": "Training critiques alone lifts answers, far less than training answers does",
    "F2": "Training both gives better answers than training answers alone",
    "F3": "Training both gives a better critic than training critiques alone",
    "F4": "Pairs: the filter is better than weighting by eq. 3, which is better than neither",
    "F5": "Denoising, eq. 4, helps answers and critiques",
    "F6": "Dynamic pairs are better for gc-rl, static ones for c-rl",
    "F7": "Eq. 5 raises precision and lowers recall, eq. 6 does the reverse",
    "F8": "Without balancing, while most responses are wrong, the critic drifts to `wrong`",
    "S1": "Before training a second attempt is no better than the first",
    "S2": "Supervised learning of corrections does not teach self-correction",
    "S3": "Plain multi-turn RL collapses: the second attempt repeats the first",
    "S4": "SCoRe's second attempts are better; without a stage or the shaping less so",
    "S5": "Half of the samples, each corrected once, vote better than all of them uncorrected",
    "groups": "Which group a reward is compared with, which the papers leave open",
}
WHY = {  # {finding: why, as far as the runs tell; written after them}
    "F1": "The critic learns which step is wrong; what solving recalls moves with it, up at some "
    "seeds (to 0.59) and down at others (to 0.34).",
    "F2": "A conjecture: if solving recalled facts as checking does, it would gain those that only "
    "checking knows and lose those that only solving knows, until checking has learned these too. "
    "Seeds differ in when that happens, hence the wide interval.",
    "F3": "Likely because both draw on the same facts: each training meets facts that the other "
    "meets seldom. After as many samples g-rl's critic is not clearly worse: answers train it.",
    "F4": "Half of the answers are right from the start, so any two are often one of each, and the "
    "filter has little to mend. In groups of a prompt that are not divided by the deviation eq. 3 "
    "made answers worse than doing nothing; with five seeds the other groups cannot tell.",
    "F5": "Nothing to be seen at five seeds; it costs half as many samples again.",
    "F6": "In the paper c-rl's policy wrote wrong responses on purpose, which its critic saw "
    "with ease. Here responses are not trained, answers do not fall, and dynamic pairs help c-rl: "
    "they bring mistakes that the fixed ones lack.",
    "F7": "A judgement here hangs on recalling one digit, not on leaning to one side in doubt: to "
    "pay 0.6 and 0.8 in place of 0.7 moves neither precision nor recall. Of the twenty intervals "
    "one leaves 0 out, as one in twenty does by chance.",
    "F8": "Its premise is not met: half of the answers are right from the start, and labels are "
    "nearly balanced without the filter. It cannot be tested on this toy.",
    "S1": "Of an event that never occurs in 512 trials the share is below 3/512 = 0.006 (95%). The "
    "toy's teacher nearly always repeats himself, so greedy second attempts do.",
    "S2": "STaR learns to answer (traces are of the current policy, where the paper's are of the "
    "base) and repeats itself. Pair-SFT, right responses of the base after wrong ones, spoils "
    "answers, second attempts and most of all critiques, which it never sees: more than half have "
    "no judgement in the end.",
    "S3": "Not as in the paper: the second attempt is a copy from the start and stays one, so "
    "there is no rise to collapse from. First attempts get better in every step, and a second "
    "look, wrong about half of the hard facts, never pays.",
    "S4": "Stage I makes a second look worthwhile before first attempts are any good. With it, and "
    "with a larger alpha, the gap is wider because first attempts stay behind; second attempts "
    "end at 0.78 to 0.80 in all variants, above multi-turn's in each that was compared.",
    "S5": "Corrected answers are right more often than first ones, which outweighs half of the "
    "votes.",
    "groups": "Five seeds show no difference. Groups of a prompt need no constants to be right.",
}

# Metrics of an evaluation, and what they are called here.
NAMES = {
    "generation": "answers",
    "critique": "critiques",
    "t2": "second attempts",
    "delta": "delta",
    "kept": "kept",
    "c_to_i": "right to wrong",
    "revised": "revised",
}
WORDS = NAMES | {  # of claims
    "t1": "first attempts",
    "critique_p1": "right responses judged right",
    "critique_p2": "wrong responses judged wrong",
    "critique_precision": "precision",
    "critique_recall": "recall",
    "vote": "votes of answers",
    "vote, corrected": "votes of corrected answers",
}
CURVES = [
    ("generation", ("g-rl", "c-rl", "gc-rl")),
    ("critique", ("g-rl", "c-rl", "gc-rl")),
    ("revised", ("g-rl", "c-rl", "gc-rl")),
    ("generation", ("score", "multi-turn")),
    ("t2", ("score", "multi-turn")),
    ("delta", ("score", "multi-turn")),
]


class Claim(NamedTuple):
    """`metric` of `run` at `step` is greater than of `other` at `other_step`."""

    finding: str
    metric: str
    run: str
    step: int
    other: str
    other_step: int
    seeds: int
    other_metric: str = ""  # where it is another
    added: bool = False  # after results had been seen


CLAIMS = [
    Claim("F1", "generation", "c-rl", 30, "c-rl", 0, 8),
    Claim("F1", "generation", "g-rl", 30, "c-rl", 30, 8),
    Claim("F2", "generation", "gc-rl", 30, "g-rl", 30, 8),
    Claim("F3", "critique", "gc-rl", 30, "c-rl", 30, 8),
    Claim("F3", "critique", "gc-rl", 30, "g-rl", 30, 8),
    Claim("S3", "delta", "multi-turn", 15, "multi-turn", 0, 8),
    Claim("S3", "delta", "multi-turn", 15, "multi-turn", 30, 8),
    Claim("S3", "kept", "multi-turn", 30, "multi-turn", 15, 8),
    Claim("S4", "t2", "score", 30, "multi-turn", 30, 8),
    Claim("S4", "delta", "score", 30, "multi-turn", 30, 8),
    Claim("S4", "delta", "score", 30, "score", 0, 8),
    Claim("S4", "t1", "score", 30, "score", 15, 8),
    Claim("S4", "t2", "score", 30, "g-rl", 30, 8, "generation"),
    Claim("S5", "vote, corrected", "score", 30, "score", 30, 8, "vote"),
    Claim("F2", "generation", "gc-rl", 30, "g-rl", 60, 8),  # about as many samples and seconds
    Claim("F2", "generation", "gc-rl", 30, "g-rl", 50, 8),
    Claim("F4", "generation", "gc-rl", 30, "gc-rl, any pairs", 30, 8),
    Claim("F4", "critique", "gc-rl", 30, "gc-rl, any pairs", 30, 8),
    Claim("F8", "critique_p2", "gc-rl, any pairs", 10, "gc-rl", 10, 8),
    Claim("F8", "critique_p1", "gc-rl", 10, "gc-rl, any pairs", 10, 8),
    Claim("S4", "t2", "score", 30, "score, no Stage I", 30, 8),
    Claim("S4", "delta", "score", 30, "score, no Stage I", 30, 8),
    Claim("S4", "t2", "score", 30, "score, alpha 0", 30, 8),
    Claim("S4", "delta", "score", 30, "score, alpha 0", 30, 8),
    Claim("S4", "t2", "score, alpha 10", 30, "score", 30, 8),
    Claim("S4", "delta", "score, alpha 10", 30, "score", 30, 8),
    Claim("S4", "t2", "score, alpha 10", 30, "multi-turn", 30, 8),
    Claim("F5", "generation", "gc-rl, eq. 4", 30, "gc-rl", 30, 5),
    Claim("F5", "critique", "gc-rl, eq. 4", 30, "gc-rl", 30, 5),
    Claim("F5", "generation", "c-rl, eq. 4", 30, "c-rl", 30, 5),
    Claim("F5", "critique", "c-rl, eq. 4", 30, "c-rl", 30, 5),
    Claim("F6", "generation", "gc-rl", 30, "gc-rl, static", 30, 5),
    Claim("F6", "critique", "gc-rl", 30, "gc-rl, static", 30, 5),
    Claim("F6", "critique", "c-rl", 30, "c-rl, dynamic", 30, 5),
    Claim("F6", "generation", "c-rl", 30, "c-rl, dynamic", 30, 5),
    Claim("F8", "critique_p2", "c-rl, any pairs", 30, "c-rl", 30, 5),
    Claim("F8", "critique_p1", "c-rl", 30, "c-rl, any pairs", 30, 5),
    Claim("S2", "delta", "score", 30, "star", 30, 5),
    Claim("S2", "delta", "score", 30, "pair-sft", 30, 5),
    Claim("S2", "t2", "score", 30, "star", 30, 5),
    Claim("S2", "t2", "score", 30, "pair-sft", 30, 5),
]
for group in GROUPS:
    plain = f"{group}: eq. 2"
    loose = f"{group}: eq. 2, any pairs"
    weighted = f"{group}: eq. 3, any pairs"
    precise = f"{group}: eq. 5"
    generous = f"{group}: eq. 6"
    seeds = 8 if group == "prompt, no std" else 5
    CLAIMS += [
        Claim("F4", "generation", plain, 30, weighted, 30, seeds),
        Claim("F4", "generation", weighted, 30, loose, 30, seeds),
        Claim("F4", "critique", plain, 30, weighted, 30, seeds),
        Claim("F4", "critique", weighted, 30, loose, 30, seeds),
        Claim("F7", "critique_precision", precise, 30, plain, 30, 5),
        Claim("F7", "critique_recall", plain, 30, precise, 30, 5),
        Claim("F7", "critique_recall", generous, 30, plain, 30, 5),
        Claim("F7", "critique_precision", plain, 30, generous, 30, 5),
        Claim("groups", "generation", "gc-rl", 30, plain, 30, 5),
        Claim("groups", "critique", "gc-rl", 30, plain, 30, 5),
    ]

CLAIMS += [
    Claim("F3", "critique", "gc-rl", 30, "g-rl", 60, 8, added=True),
    Claim("S2", "delta", "star", 30, "star", 0, 5, added=True),
    Claim("S2", "delta", "pair-sft", 30, "pair-sft", 0, 5, added=True),
    Claim("S3", "delta", "multi-turn", 30, "multi-turn", 0, 8, added=True),
    Claim("S3", "kept", "multi-turn", 0, "multi-turn", 30, 8, added=True),
    Claim("S4", "t1", "score", 30, "score", 0, 8, added=True),
    Claim("S4", "t1", "score", 30, "multi-turn", 30, 8, added=True),
    Claim("S4", "t1", "score", 30, "score, no Stage I", 30, 8, added=True),
    Claim("S4", "t1", "score", 30, "score, alpha 0", 30, 8, added=True),
    Claim("S4", "t2", "score", 30, "g-rl", 60, 8, "generation", added=True),
]

# ---------------------------------------------------------------------------------------- the runs


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
    """{(command, processor): line of a run}."""
    lines = {}
    if LINES.exists():
        for text in LINES.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            lines[line["command"], line["processor"]] = line
    return lines


def missing_runs(lines):
    """The runs without which a claim lacks a pair, [(run, seed), ...] in the order of the claims.
    Both runs of a pair are to be of one machine: else both are run on this one."""
    here = processor()
    missing = {}
    for claim in CLAIMS:
        for seed in range(claim.seeds):
            if not pair_of(lines, claim, seed):
                for run in (claim.run, claim.other):
                    if (command_of(run, seed), here) not in lines:
                        missing[run, seed] = None
    return list(missing)


def carry_out(run, seed):
    """Train, and return what is kept of the run as a line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [sys.executable, *shlex.split(command_of(run, seed))[1:], "--out", str(out)]
        execute(words)
        rows = []
        for text in (out / "metrics.jsonl").read_text().splitlines():
            rows.append(json.loads(text))
        line = {
            "run": run,
            "seed": seed,
            "command": command_of(run, seed),
            "processor": processor(),
            "torch": torch.__version__,
            "evaluations": [],
        }
        samples = 0
        seconds = 0.0
        for row in rows:
            samples += row.get("samples", 0)
            seconds += row.get("seconds/step", 0.0)
            if "eval/generation" in row:
                numbers = {"step": row["step"], "samples": samples, "seconds": round(seconds, 1)}
                line["evaluations"].append(numbers | evaluated(row))
        if run == "score":
            # S5: eight answers and a correction of each, against sixteen answers.
            words = f"-m figures.votes {out} --n 16 --json --out {out}/votes.svg"
            printed = execute([sys.executable, *words.split()])
            votes = json.loads(printed.splitlines()[-1])
            last = line["evaluations"][-1]
            last["vote, corrected"] = votes["vote/parallel, corrected"]["16"]
            last["vote"] = votes["vote/parallel"]["16"]
    return line


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
    todo = missing_runs(read_lines())
    bar = tqdm(total=len(todo), desc="runs")

    def carry_out_one(job):
        line = carry_out(*job)
        with open(LINES, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        bar.set_postfix_str(line["command"])
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


def pair_of(lines, claim, seed):
    """Both runs of a seed that one machine has carried out, or None."""
    for machine in sorted({machine for _, machine in lines}):
        run = lines.get((command_of(claim.run, seed), machine))
        other = lines.get((command_of(claim.other, seed), machine))
        if run and other:
            return run, other
    return None


def differences(lines, claim):
    """By how much the claim holds, for each seed of which there is a pair."""
    found = []
    for seed in range(claim.seeds):
        pair = pair_of(lines, claim, seed)
        if pair:
            run, other = pair
            first = number(run, claim.step, claim.metric)
            second = number(other, claim.other_step, claim.other_metric or claim.metric)
            # Where nothing is called right there is no precision.
            if first is not None and second is not None:
                found.append(first - second)
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


def verdict(values):
    """What the values, differences over seeds, say about a claim."""
    if not any(values):
        return "no difference at any seed"
    middle, half = interval(values)
    if middle - half > 0:
        return "holds here"
    if middle + half < 0:
        return "does not hold here"
    deviation = np.std(values, ddof=1)
    for count in range(len(values) + 1, 101):
        if t_quantile(count - 1) * deviation / math.sqrt(count) < abs(middle):
            return f"cannot be told; about {count} seeds would tell"
    return "cannot be told; not even with 100 seeds"


def words_of(claim):
    """A claim in words: `answers: c-rl at 30 > c-rl at 0`."""
    other = f"{claim.other} at {claim.other_step}"
    if claim.other_metric:
        other = f"{WORDS[claim.other_metric]} of {other}"
    note = " (added later)" if claim.added else ""
    return f"{WORDS[claim.metric]}: {claim.run} at {claim.step} > {other}{note}"


def runs_of(lines, name):
    """The lines of a run, one for each seed, whichever machine it is from."""
    seeds = {line["seed"]: line for line in lines.values() if line["run"] == name}
    return list(seeds.values())


HEAD = """# Do the claims hold on the toy?

Made by `python -m figures.findings > figures/findings.md`. First what each kind of run ends with,
on 512 held-out problems, as mean (least to greatest) over seeds; samples and seconds are medians
and leave out evaluations. The seconds are those of runs side by side on a shared machine.
Where pairs are static, 1,280 responses were sampled before the first step, which are not counted.
"""
LEGEND = """
A claim *holds here* if the 95% interval of the mean difference over seeds lies above 0, and *does
not hold here* if it lies below. Of {} intervals {} would be expected not to contain 0 if nothing
made any difference. Where a claim *cannot be told*, so many seeds would tell if mean and deviation
stayed what they are. What was *added later* was added after results had been seen. The picture
(findings.svg) has all intervals side by side, [another](methods.svg) the methods step by step.
"""


def show_runs(lines):
    """Print what every kind of run ends with, means over seeds with least and greatest."""
    print(HEAD)
    print("| run, at step | seeds | " + " | ".join(NAMES.values()) + " | samples | seconds |")
    print("| --- " * (len(NAMES) + 4) + "|")
    for name, step in [("g-rl", 0), *((name, 30) for name in RUNS), ("g-rl", 60)]:
        runs = runs_of(lines, name)
        if not runs:
            continue
        cells = [f"{name}, {step}", str(len(runs))]
        for metric in NAMES:
            values = [number(line, step, metric) for line in runs]
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        for cost in ("samples", "seconds"):
            values = [number(line, step, cost) for line in runs]
            cells.append(f"{np.median(values):,.0f}")
        print(f"| {' | '.join(cells)} |")


def show_claims(lines):
    """Print the claims of which there are runs, with their verdicts, and draw them."""
    print(LEGEND.format(len(CLAIMS), round(0.05 * len(CLAIMS))))
    rows = []
    for finding, title in FINDINGS.items():
        print(f"\n## {finding}. {title}\n")
        if finding == "S1":
            show_start(lines)
            continue
        measured = []
        for claim in CLAIMS:
            values = differences(lines, claim)
            if claim.finding == finding and len(values) > 1:
                measured.append((claim, values))
        if not measured:
            print("Not run yet.")
            continue
        rows.append((f"{finding}. {title}",))
        print("| claim | mean | 95% interval | seeds | verdict |")
        print("| --- | --- | --- | --- | --- |")
        for claim, values in measured:
            middle, half = interval(values)
            low = middle - half
            high = middle + half
            words = words_of(claim)
            between = f"{low:+.3f} to {high:+.3f}"
            seeds = f"{len(values)} of {claim.seeds}"
            print(f"| {words} | {middle:+.3f} | {between} | {seeds} | {verdict(values)} |")
            rows.append((words, middle, low, high))
        print(f"\n{WHY[finding]}")
    forest(FOLDER / "findings.svg", rows, "By how much the claims hold: means and 95% intervals")


def show_start(lines):
    """S1 is about one policy, that of the start: all that varies is the problems."""
    start = next(iter(lines.values()))["evaluations"][0]
    delta = start["delta"]
    # To the sum, whose mean is delta, a problem adds 1, -1 or 0.
    variance = start["i_to_c"] + start["c_to_i"] - delta**2
    half = 1.96 * math.sqrt(variance / start["size"])
    up = round(start["i_to_c"] * start["size"])
    down = round(start["c_to_i"] * start["size"])
    print(f"Delta is {delta:+.3f} (95% over problems: {half:.3f} either way). Of {start['size']}")
    print(f"answers {up} went from wrong to right, {down} from right to wrong. {WHY['S1']}")


def draw_curves(lines):
    """The curves of both papers, with bands from the least to the greatest seed."""
    charts = []
    for metric, names in CURVES:
        series = {}
        for name in names:
            series[name] = []
            for line in runs_of(lines, name):
                points = [(row["step"], row[metric]) for row in line["evaluations"]]
                series[name].append([point for point in points if point[0] <= 30])
        charts.append((NAMES[metric], "step", series))
    line_charts(FOLDER / "methods.svg", charts, "On 512 held-out problems, greedy")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="first run what is missing")
    args = parser.parse_args(argv)
    if args.run:
        carry_out_missing()
    lines = read_lines()
    if not lines:
        raise InputError(f"{LINES}: no runs; begin with --run")
    show_runs(lines)
    show_claims(lines)
    draw_curves(lines)


if __name__ == "__main__":
    run_command(main)
