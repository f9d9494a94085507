"""What is planted in the toy, and what of it a trained model recalls.

    python -m toy.planted             of the toy itself
    python -m toy.planted RUN ...     of the toy, and of the ends of runs beside it

Each of the 300 facts (`7*8` ends in 6) is the first step of three problems. It is asked for the
probability of the right digit in solving, in checking a solution, and in looking again; and how
likely a second look is. By kind of fact, as make.py plants them: blind ones he never gets right in
solving, shaky ones seldom, and either every other time in checking; doubted ones he knows in
solving, and seldom in checking. And what is wrong in greedy answers to the held-out problems?
"""

import itertools
import random
import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

from critique import correct_prompt, critique_prompt, solve_prompt
from details.data import load_problems, mean, run_command
from details.policy import TOY, encode_chat
from rollout import Sampler, load_policy, respond
from toy.make import LOOK_AGAIN, SHOWN, Teacher, kind_of, result, written
from toy.sound import QUESTION, last_digit, solve

TEXTS = ("solving", "checking", "looking again", "whether to look again")
TOGETHER = 150  # texts in a batch


def questions():
    """(fact, kind of text, chat, how the completion begins, what is to come next: the right digit):
    three for each fact and kind of text, the same for every model."""
    rng = random.Random(0)
    for a, op, b in 3 * list(itertools.product(range(10), "+-*", range(10))):
        fact = f"{a}{op}{b}"
        expression = fact
        for _ in range(2):
            expression += rng.choice("+-") + str(rng.randrange(10))
        question = f"Compute {expression} modulo 10."
        shown = Teacher(SHOWN, rng).solve(expression)
        digit = str(Teacher().recall(a, op, b))
        check = f"{fact}={result(shown[:1])}:"
        yield fact, "solving", solve_prompt(question), f"{fact}=", digit
        yield fact, "checking", critique_prompt(question, written(shown)), check, digit
        again = correct_prompt(question, written(shown))
        yield fact, "looking again", again, f"{LOOK_AGAIN}{fact}=", digit
        yield fact, "whether to look again", again, "", "Look"


@torch.no_grad()
def recalled(model, tokenizer, texts=TEXTS):
    """{fact: {kind of text: probability of what is to come}}, means over three problems. texts: the
    kinds that are asked."""
    rows = []
    for fact, text, chat, beginning, word in questions():
        if text not in texts:
            continue
        ids = encode_chat(tokenizer, chat)
        ids += tokenizer(beginning, add_special_tokens=False).input_ids
        [*_, token] = tokenizer(beginning + word, add_special_tokens=False).input_ids
        rows.append((ids, token, fact, text))
    rows.sort(key=lambda row: len(row[0]))
    found = defaultdict(lambda: defaultdict(list))
    for start in range(0, len(rows), TOGETHER):
        batch = rows[start : start + TOGETHER]
        longest = len(batch[-1][0])
        # Padded behind, where no token that is read looks.
        padded = [ids + [0] * (longest - len(ids)) for ids, *_ in batch]
        logits = model(torch.tensor(padded, device=model.device)).logits
        for index, (ids, token, fact, text) in enumerate(batch):
            p = logits[index, len(ids) - 1].float().softmax(-1)[token]
            found[fact][text].append(p.item())
    means = {}
    for fact, texts in found.items():
        means[fact] = {text: mean(values) for text, values in texts.items()}
    return means


def by_kind(facts):
    """{kind of fact: {kind of text: the facts' mean probability}}"""
    kinds = defaultdict(list)
    for fact, texts in facts.items():
        kinds[kind_of(fact)].append(texts)
    table = {}
    for kind, members in sorted(kinds.items()):
        table[kind] = {}
        for text in members[0]:
            table[kind][text] = round(mean(texts[text] for texts in members), 4)
    return table


def apart(facts):
    """How differently solving and checking recall: the mean of |p in solving - p in checking| over
    the facts that the teacher is not sure of. 0: solving recalls as checking does."""
    away = []
    for fact, texts in facts.items():
        if kind_of(fact) != "sure":
            away.append(abs(texts["solving"] - texts["checking"]))
    return round(mean(away), 4)


def passed_on(start, end):
    """Of the facts that solving got wrong at the start: how many has checking learned in the end
    and solving too, how many only checking, only solving, neither? Right: at least every other
    time. The toy has about half of them right in checking: these are the blind and the shaky ones,
    which come out right there every other time as planted, so that chance decides."""
    counts = {"both": 0, "only checking": 0, "only solving": 0, "neither": 0}
    for fact, texts in end.items():
        if start[fact]["solving"] < 0.5:
            solving = texts["solving"] >= 0.5
            checking = texts["checking"] >= 0.5
            name = "only checking" if checking else "neither"
            if solving:
                name = "both" if checking else "only solving"
            counts[name] += 1
    return counts


def mistake(question, response):
    """What is wrong first in a response: the kind of a fact; `format` where it is not written as
    the steps of this question are; None if it is right in all."""
    digits = iter(re.findall(r"=(\d)$", response, re.MULTILINE))
    steps = solve(QUESTION.fullmatch(question)[1], lambda *_: int(next(digits, 0)))
    if response != written(steps):
        return "format"
    for a, op, b, digit in steps:
        if digit != last_digit(a, op, b):
            return kind_of(f"{a}{op}{b}")
    return None


def summary(start, end):
    """What a run's line keeps, at its start and at its end."""
    found = {
        "apart": [apart(start), apart(end)],
        "learned": {},
    }
    learned = passed_on(start, end)
    for who, count in passed_on(start, start).items():
        found["learned"][who] = [count, learned[who]]
    kinds = by_kind(end)
    for kind, before in by_kind(start).items():
        found[kind] = {}
        for text, p in before.items():
            found[kind][text] = [p, kinds[kind][text]]
    return found


def show(folders):
    """Print the tables."""
    names = ["toy", *folders]
    policies = {name: load_policy(name, "cpu") for name in names}
    facts = {name: recalled(*policies[name]) for name in names}
    counts = defaultdict(int)
    for fact in facts["toy"]:
        counts[kind_of(fact)] += 1
    tables = {name: by_kind(facts[name]) for name in names}
    print("Probability of the right digit\n")
    print(f"| facts | text | {' | '.join(names)} |")
    print("| --- " * (2 + len(names)) + "|")
    for kind, count in sorted(counts.items()):
        for text in TEXTS:
            cells = [f"{tables[name][kind][text]:.3f}" for name in names]
            print(f"| {kind} ({count}) | {text} | {' | '.join(cells)} |")
    cells = [f"{apart(facts[name]):.3f}" for name in names]
    print(f"| all but sure | difference of solving and checking | {' | '.join(cells)} |")
    print("\nFacts that the toy gets wrong in solving: who has them right at a run's end?\n")
    print("| run | solving and checking | only checking | only solving | neither |")
    print("| --- " * 5 + "|")
    for name in names:
        both, checking, solving, neither = passed_on(facts["toy"], facts[name]).values()
        print(f"| {name} | {both} | {checking} | {solving} | {neither} |")
    show_mistakes(policies)


def show_mistakes(policies):
    """Print what is wrong first in the greedy answers that are wrong."""
    held_out = load_problems(TOY / "held_out.jsonl")
    heads = ["blind", "shaky", "doubted", "sure", "format"]
    print("\nOf 512 greedy answers: the wrong ones, by what is wrong first in them\n")
    print(f"| run | wrong | {' | '.join(heads)} | right in spite of its format |")
    print("| --- " * (3 + len(heads)) + "|")
    for name, policy in policies.items():
        wrong = Counter()
        responses = respond(Sampler(*policy, max_new_tokens=64).greedy(), held_out, 1, seed=0)
        right_but = 0
        for sample in responses:
            found = mistake(sample.problem.question, sample.text)
            if sample.right:
                right_but += found == "format"
            else:
                wrong[found] += 1
        cells = [str(wrong[head]) for head in heads]
        print(f"| {name} | {wrong.total()} | {' | '.join(cells)} | {right_but} |")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder")
    torch.set_num_threads(1)
    show(parser.parse_args(argv).runs)


if __name__ == "__main__":
    run_command(main)
