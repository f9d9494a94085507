"""Whole-number arithmetic for a real model: questions such as `What is 15 * 2?`.

    python -m toy.arithmetic FOLDER

A small pretrained model knows more of it than it says, so that reinforcement learning has something
to lift. FOLDER gets train.jsonl (500 questions), held_out.jsonl (200) and critiques.jsonl (128):
demonstrations for `train.py --cold-start` that show how a critique is written. Answering is not
trained by them, though each states the right result of its task. No question is in two files.
"""

import itertools
import random
import sys
from pathlib import Path

from details.data import run_command, write_jsonl
from details.errors import InputError
from toy.worked import SLIPS

TRAIN = 500
HELD_OUT = 200
CRITICISED = 64  # questions, each with a right and a wrong solution
KIND = 320  # sums, and as many differences; of products there are only 124, and all are used


def questions(rng):
    """[(`15 * 2`, 30), ...], all different, in random order."""
    sums = []
    differences = []
    products = []
    # The larger number first: no question is another one turned round.
    for b, a in itertools.combinations_with_replacement(range(2, 31), 2):
        sums.append((f"{a} + {b}", a + b))
        differences.append((f"{a} - {b}", a - b))
        if a <= 20 and b <= 9:
            products.append((f"{a} * {b}", a * b))
    chosen = rng.sample(sums, KIND) + rng.sample(differences, KIND) + products
    return rng.sample(chosen, len(chosen))


def criticised(task, result, shown):
    """A demonstration of a critique: does `shown` follow from the task? Its solution is not to be
    learned, even where it is right."""
    verdict = "ok"
    label = "right"
    if shown != result:
        verdict = f"no, the solution has {shown}"
        label = "wrong"
    return {
        "question": f"What is {task}?",
        "response": f"{task} = {shown}\n\\boxed{{{shown}}}",
        "critique": f"{task} = {result}: {verdict}\nConclusion: {label}",
        "label": label,
        "critique_only": True,
    }


def make(folder):
    rng = random.Random(0)
    tasks = iter(questions(rng))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", TRAIN), ("held_out", HELD_OUT)):
        rows = []
        for task, result in itertools.islice(tasks, count):
            rows.append({"question": f"What is {task}?", "answer": str(result)})
        write_jsonl(folder / f"{name}.jsonl", rows)
    rows = []
    for task, result in itertools.islice(tasks, CRITICISED):
        # No result below 0: it would be wrong at a glance.
        slips = [slip for slip in SLIPS if result + slip >= 0]
        rows.append(criticised(task, result, result))
        rows.append(criticised(task, result, result + rng.choice(slips)))
    write_jsonl(folder / "critiques.jsonl", rows)
    print(f"{folder}: {TRAIN} questions to train on, {HELD_OUT} held out, {len(rows)} critiques")


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError("name one folder: python -m toy.arithmetic FOLDER")
    make(argv[0])


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
