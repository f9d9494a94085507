"""Demonstrations for a cold start out of GSM8K's worked solutions.

GSM8K annotates each step of a solution, as in `He sold 48/2 = <<48/2=24>>24 clips`. From one such
solution come two demonstrations: the solution with a critique that finds every step right, and the
same with one step broken, its consequences carried on, and a critique that finds the broken step.

    python -m toy.worked FILE.jsonl     print them for `train.py --cold-start`
    python -m toy.worked                from GSM8K's training file
"""

import ast
import contextlib
import json
import random
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from fractions import Fraction
from operator import add, mul, sub, truediv

from details.answers import reference
from details.data import load_problems, run_command
from details.errors import InputError

STEP = re.compile(r"<<([^<>=]{1,60})=([^<>=]{1,20})>>")
PRINTED_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")  # 24, 1,200.5, .4
# An equation in the text: 16 / 4 = $4, 0.5 x (2 + 3) = 2.5
EQUATION = re.compile(r"([\d.(](?:[\d.$()*/x+ -]|,(?=\d))*)=\s*\$?(-?[\d.,]*\d)")
OPERATORS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}
SLIPS = (-10, -2, -1, 1, 2, 10)  # by how much a broken step is off


def calculate(expression, changed):
    """The exact value of `48/2+3` with the numbers in `changed` replaced: parsed, not evaluated.

    Raises ValueError for anything but numbers, + - * / and brackets.
    """

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            number = Fraction(str(node.value))
            return changed.get(number, number)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"no arithmetic: {expression}")

    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(f"no arithmetic: {expression}") from error


def decimal(value):
    """A Fraction as text: 24, 0.5. Raises ValueError where two decimals are not exact."""
    if (value * 100).denominator != 1:
        raise ValueError(f"{value} has more than two decimals")
    return f"{float(value):.15g}"


def check_steps(steps, broken, rng):
    """(checks, checks of the broken solution, changed): a line of critique for each step, and
    {true value: value in the broken solution}.

    Raises ValueError for an annotation that is not exact, and for a broken value that comes out in
    more than one way: the text does not tell which of them stands where.
    """
    changed = {}
    values = []
    checks = []
    broken_checks = []
    for index, step in enumerate(steps):
        expression, result = step.groups()
        value = calculate(expression, {})
        shown = calculate(expression, changed)
        if value < 0 or value != reference(result).value:
            raise ValueError(f"{expression} is not {result}")
        if index == broken:
            shown += rng.choice([slip for slip in SLIPS if shown + slip > 0])
        values.append(value)
        line = f"{expression.strip()} = {decimal(value)}: "
        verdict = "ok"
        if shown != value:
            verdict = f"no, the solution has {decimal(shown)}"
            changed[value] = shown
        checks.append(line + "ok")
        broken_checks.append(line + verdict)
    for value in changed:
        if values.count(value) > 1:
            raise ValueError(f"{value} comes out in more than one way")
    return checks, broken_checks, changed


def demonstrate(problem, rng):
    """Two demonstrations from one annotated solution, one criticised as right and one as wrong.

    Raises ValueError where the solution has no annotations, or one that is not exact, and where
    the broken solution has an error that no check finds.
    """
    work, _, answer = problem.answer.partition("####")
    steps = list(STEP.finditer(work))
    broken = rng.randrange(len(steps))  # of no steps a ValueError, too
    checks, broken_checks, changed = check_steps(steps, broken, rng)
    final = changed.get(reference(answer).value)
    if final is None:
        raise ValueError("the broken step does not change the answer")

    def renumber(found):
        number = Fraction(found[0].replace(",", ""))
        return decimal(changed[number]) if number in changed else found[0]

    cut = steps[broken].start()  # what stands before it stays true
    behind = PRINTED_NUMBER.sub(renumber, STEP.sub("", work[cut:]))
    # Some equations have no annotation, others do not say the same as theirs.
    for expression, result in EQUATION.findall(behind):
        value = calculate(re.sub("[$,]", "", expression).replace("x", "*"), {})
        if value != reference(result).value:
            raise ValueError(f"{expression} is not {result}")
    return [
        to_row(problem, work, answer.strip(), checks, "right"),
        to_row(problem, work[:cut] + behind, decimal(final), broken_checks, "wrong"),
    ]


def to_row(problem, work, answer, checks, label):
    """A demonstration as a JSON object."""
    return {
        "question": problem.question,
        "response": f"{STEP.sub('', work).strip()}\nThe answer is \\boxed{{{answer}}}.",
        "critique": "\n".join(checks + [f"Conclusion: {label}"]),
        "label": label,
    }


def print_demonstrations(data):
    """JSON lines for `train.py --cold-start` on standard output, a count on standard error."""
    with contextlib.redirect_stdout(sys.stderr):  # what is left out is said
        problems = load_problems(data)
    rng = random.Random(0)
    used = 0
    for problem in problems:
        try:
            rows = demonstrate(problem, rng)
        except ValueError:  # not annotated, or not exactly
            continue
        for row in rows:
            print(json.dumps(row))
        used += 1
    print(f"{2 * used} demonstrations from {used} of {len(problems)} problems", file=sys.stderr)
    if not used:
        raise InputError(f"{data}: no answer is a worked solution with <<48/2=24>> annotations")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="gsm8k")
    run_command(print_demonstrations, parser.parse_args(argv).data)


if __name__ == "__main__":
    main()
