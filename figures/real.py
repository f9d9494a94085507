"""What RL lifts in a real model, from two starts, by three methods: programs, or arithmetic.

    python -m figures.real programs          tables and picture, from figures/programs.jsonl alone
    python -m figures.real programs --run    first the runs that are missing, one after another:
                                             hours on a CPU, and it goes on where it was stopped

One start is the model as it is. The other has learned from 128 critiques how a critique is written.
Of arithmetic answering was not trained, though a critique states the right result of a task that is
in no other file. Of programs the 64 right solutions that are criticised were learned, too: after
critiques alone the model answered every question by a critique. All runs share that one start, the
held-out problems, and an exam of responses of the model as it is; so the intervals are about the
seeds of RL alone. On another machine another start comes out: to run it all there, first move
figures/programs.jsonl away.
"""

import functools
import itertools
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from operator import itemgetter
from pathlib import Path

from details import threads  # noqa: F401  # isort: skip (before torch)

import numpy as np
import torch
from tqdm import tqdm

from critique import solve_prompt
from details.data import load_problems, mean, read_jsonl, read_some, run_command, write_jsonl
from details.errors import InputError
from details.policy import decode, encode_chat
from details.runs import signals_caught
from figures.chart import line_charts
from figures.findings import evaluated, interval, processor
from rollout import generate, load_policy
from toy import arithmetic, programs

FOLDER = Path(__file__).parent
TASKS = {"programs": programs.make, "arithmetic": arithmetic.make}

# ---------------------------------------------------------------------------------- the protocol
#
# Seeds, steps and checkpoints were fixed before any of these runs; settings were chosen at seed
# 100, which is not used here.

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHERE = {"cpu": "--device cpu", "cuda": "--device cuda --precision fp32"}
ALL = "--kl 0 --lr 2e-5 --updates 2 --max-new-tokens 64 --eval-size 200"
STEPS = {"programs": "--steps 10", "arithmetic": "--steps 20"}
AS_IT_IS = "g-rl-as-it-is"
RUNS = {  # {name: (flags, seeds)}; all but the first two begin from the second start
    AS_IT_IS: ("--method g-rl {steps} --questions 16", 5),
    f"{AS_IT_IS}-lora": ("--method g-rl {steps} --questions 16 --lora 16 --lr 5e-4", 3),
    "g-rl": ("--method g-rl {steps} --questions 16", 5),
    "gc-rl": ("--method gc-rl {steps} --questions 16", 5),
    "score": ("--method score {steps} --questions 8", 3),
}
COMPARED = [  # a metric of a run, and of another run
    ("generation", f"{AS_IT_IS}-lora", "generation", AS_IT_IS),
    ("generation", "gc-rl", "generation", "g-rl"),
    ("critique", "gc-rl", "critique", "g-rl"),
    ("t2", "score", "generation", "g-rl"),
    ("delta", "score", "delta", "g-rl"),
]
NAMES = {
    "generation": "answers",
    "critique": "critiques",
    "t2": "second attempts",
    "delta": "delta",
    "continued": "from the first words on",
}


def flags_of(task, name, device):
    """Those of a run, but for its seed and its files."""
    flags, _ = RUNS[name]
    return f"{WHERE[device]} {ALL} {flags.format(steps=STEPS[task])}"


# ---------------------------------------------------------------------------------------- the runs


def train(out, flags, **files):
    """Run train.py into the folder `out`, or go on with it."""
    program = str(FOLDER.parent / "train.py")
    words = [sys.executable, program, "--resume", f"--out={out}", *flags.split()]
    for flag, file in files.items():
        words.append(f"--{flag.replace('_', '-')}={file}")
    process = subprocess.Popen(words)
    with signals_caught() as stop:  # Ctrl-C reaches the run too, which ends its step and saves
        code = process.wait()
    if code or stop:
        raise InputError(f"{out}: the run has stopped; --run goes on with it if it can")


def lines_of(task):
    """The file of a task's runs."""
    return FOLDER / f"{task}.jsonl"


@functools.cache
def continued(model, file, device):
    """The share of a file's problems that a model gets right, greedily, when it goes on from the
    first words of the solution, `15 * 2 =`: how it would have begun by itself does not count."""
    model, tokenizer = load_policy(model, device, "fp32")
    problems = load_problems(file)
    prompts = []
    for problem in problems:
        task = problem.question.removeprefix("What is ").removesuffix("?")
        words = tokenizer(f"{task} =", add_special_tokens=False).input_ids
        prompts.append(encode_chat(tokenizer, solve_prompt(problem.question)) + words)
    right = []
    for problem, sample in zip(problems, generate(model, prompts, max_new_tokens=8, temperature=0)):
        text, _ = decode(tokenizer, sample)
        found = re.match(r"-?\d+", text)
        right.append(found is not None and found[0] == problem.answer)
    return mean(right)


def prepare(task, model, folder, device):
    """What all runs share: the files of --data, --eval-data and --exam, which the model as it is
    writes."""
    data = folder / "data"
    files = {"data": data / "train.jsonl", "eval_data": data / "held_out.jsonl"}
    if not (data / "critiques.jsonl").exists():
        TASKS[task](data)
    exam = folder / "as-it-is" / "exam.jsonl"
    if not exam.exists():
        flags = f"{WHERE[device]} {ALL} --method g-rl --steps 0"
        train(folder / "as-it-is", flags, model=model, **files)
    return files | {"exam": exam}


def second_start(model, folder, device, files):
    """The model that has learned how a critique is written."""
    start = folder / "start"
    if not (start / "model.safetensors").exists():
        flags = f"{WHERE[device]} {ALL} --method g-rl --steps 0 --cold-start-lr 1e-4"
        critiques = folder / "data" / "critiques.jsonl"
        train(start, flags, model=model, cold_start=critiques, **files)
    return start


def processor_of(device):
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def carry_out(task, model, folder, device, wanted):
    """Those of the wanted runs [(name, seed)] that are missing; each is a line as soon as it has
    ended."""
    done = {(line["run"], line["flags"], line["seed"]) for line in read_some(lines_of(task))}
    todo = []
    for name, seed in wanted:
        flags = flags_of(task, name, device)
        if (name, flags, seed) not in done:
            todo.append((name, flags, seed))
    if not todo:
        return
    files = prepare(task, model, folder, device)
    for name, flags, seed in tqdm(todo, "runs"):
        begun = model
        if not name.startswith(AS_IT_IS):
            begun = second_start(model, folder, device, files)
        out = folder / f"{name}-{seed}"
        train(out, f"{flags} --seed {seed}", model=begun, **files)
        [before, *steps] = read_jsonl(out / "metrics.jsonl", dict)
        evaluations = []
        for row in [before, *steps]:
            if "eval/generation" in row:
                numbers = {"step": row["step"], "seconds": round(row["seconds"], 1)}
                evaluations.append(numbers | evaluated(row))
        if task == "arithmetic":
            evaluations[0]["continued"] = continued(begun, files["eval_data"], device)
            evaluations[-1]["continued"] = continued(out, files["eval_data"], device)
        line = {
            "run": name,
            "seed": seed,
            "flags": flags,
            "processor": processor_of(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            # Of the samples of step 1, which the policy drew as it started.
            "accuracy": steps[0].get("response/accuracy", steps[0].get("t1")),
            "pass@n": steps[0]["pass@n"],
            "samples": sum(row["samples"] for row in steps),
            "evaluations": evaluations,
        }
        write_jsonl(lines_of(task), [line], "a")
        (out / "resume.pt").unlink()  # 1.6 GB; the trained model stays
        shutil.rmtree(out / "start")
        shutil.rmtree(out / "best")


# -------------------------------------------------------------------------------- what came out


def show_all(file, show):
    """`show` the lines of a file, if there are any."""
    lines = read_some(file)
    if not lines:
        raise InputError(f"{file}: no runs; begin with --run")
    show(lines)


def number(line, index, metric):
    """A number of a run's first evaluation (index 0) or of its last (-1)."""
    return line["evaluations"][index][metric]


def mean_and_interval(values):
    """The mean of differences with its 95% interval, which takes two seeds at least."""
    if len(values) < 2:
        return f"{mean(values):+.3f}"
    middle, half = interval(values)
    return f"{middle:+.3f} ({middle - half:+.3f} to {middle + half:+.3f})"


def print_table(heads, rows):
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def show(task, lines):
    """Print the tables, and draw the curves."""
    runs = {}  # {(name, device): {seed: line}}
    for name, device in itertools.product(RUNS, WHERE):
        found = runs[name, device] = {}
        for line in sorted(lines, key=itemgetter("seed")):
            if (line["run"], line["flags"]) == (name, flags_of(task, name, device)):
                found[line["seed"]] = line

    print("From the start to the end, means over seeds (of samples and minutes medians); then the")
    print("change with its 95% interval.\n")
    names = [metric for metric in NAMES if metric in lines[0]["evaluations"][0]]
    heads = ["run", "on", "seeds", "sampled in step 1: right, pass@8"]
    heads += [NAMES[metric] for metric in names]
    heads += ["answers, seed by seed", "samples", "minutes"]
    rows = []
    charts = {metric: {} for metric in ("generation", "critique", "t2", "delta")}
    for name, device in itertools.product(RUNS, WHERE):
        found = list(runs[name, device].values())
        if not found:
            continue
        room = [f"{mean(line[key] for line in found):.2f}" for key in ("accuracy", "pass@n")]
        cells = [name, device, str(len(found)), ", ".join(room)]
        for metric in names:
            starts = [number(line, 0, metric) for line in found]
            ends = [number(line, -1, metric) for line in found]
            changes = np.subtract(ends, starts).tolist()
            cells.append(f"{mean(starts):.3f} to {mean(ends):.3f}; {mean_and_interval(changes)}")
            if metric == "generation":
                each = " ".join(f"{change:+.3f}" for change in changes)
        minutes = [number(line, -1, "seconds") / 60 for line in found]
        samples = np.median([line["samples"] for line in found])
        rows.append([*cells, each, f"{samples:,.0f}", f"{np.median(minutes):.0f}"])
        for metric, series in charts.items():
            curves = series.setdefault(name if device == "cpu" else f"{name}, GPU", [])
            for line in found:
                curves.append([(row["step"], row[metric]) for row in line["evaluations"]])
    print_table(heads, rows)

    rows = []
    for (metric, name, other_metric, other), device in itertools.product(COMPARED, WHERE):
        ours = runs[name, device]
        theirs = runs[other, device]
        differences = []
        for seed in sorted(ours.keys() & theirs.keys()):
            value = number(ours[seed], -1, metric)
            differences.append(value - number(theirs[seed], -1, other_metric))
        if differences:
            words = f"{NAMES[metric]} of {name} above {NAMES[other_metric]} of {other}"
            rows.append([words, device, str(len(differences)), mean_and_interval(differences)])
    if rows:
        print("\nAt the end, paired by seed.\n")
        print_table(["difference", "on", "seeds", "mean"], rows)
    pictures = [(NAMES[metric], "step", series) for metric, series in charts.items()]
    line_charts(FOLDER / f"{task}.svg", pictures, "On 200 held-out problems and an exam, greedy")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--run", action="store_true", help="first run what is missing")
    add("--model", default=MODEL, help="or a copy of it [%(default)s]")
    add(
        "--folder",
        help="of the data, the second start and the runs; one for each device [runs/real-TASK]",
    )
    add("--device", choices=WHERE, default="cpu", help="of the runs [cpu]")
    add("--only", choices=RUNS, help="with --run: one of the runs")
    add("--seed", type=int, help="with --run: one of the seeds")
    args = parser.parse_args(argv)
    wanted = []
    for seed in range(5):
        for name, (_, seeds) in RUNS.items():
            if seed < seeds and args.only in (None, name) and args.seed in (None, seed):
                wanted.append((name, seed))
    if args.run:
        folder = Path(args.folder or f"runs/real-{args.task}")
        carry_out(args.task, args.model, folder, args.device, wanted)
    show_all(lines_of(args.task), functools.partial(show, args.task))


if __name__ == "__main__":
    run_command(main)
