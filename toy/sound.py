"""Is the reason right? In the toy's arithmetic it can be counted.

A critique earns its reward by its last word. It may call a wrong response wrong for a wrong reason,
and earns as much. Here each step of a solution is one line, and a critique repeats it, writes what
it takes the result to be, and says `ok` or `no`:

    8*9=5:2 no

So what it objects to can be held against what is wrong.
"""

import re

QUESTION = re.compile(r"Compute (\d(?:[-+*]\d)+) modulo 10\.")
STEP = re.compile(r"(\d)([-+*])(\d)=(\d)")
CHECKED = re.compile(r"(\d[-+*]\d=\d):\d (?:ok|(no))")


def last_digit(a, op, b):
    results = {"+": a + b, "-": a - b, "*": a * b}
    return results[op] % 10


def solve(expression, recall=last_digit):
    """The steps [(a, operator, b, digit), ...] of '9-7*2-5', modulo 10: products first, then from
    left to right. recall: what gives the digit."""
    numbers = [int(digit) for digit in expression[::2]]
    operators = list(expression[1::2])
    steps = []
    while operators:
        index = operators.index("*") if "*" in operators else 0
        a = numbers[index]
        op = operators.pop(index)
        b = numbers.pop(index + 1)
        numbers[index] = recall(a, op, b)
        steps.append((a, op, b, numbers[index]))
    return steps


def lines_of(pattern, text):
    """[(number of the line, its match), ...] of the lines of a text that have this form."""
    matches = enumerate(map(pattern.fullmatch, text.split("\n")))
    return [(number, match) for number, match in matches if match]


def first_wrong(question, response):
    """The number of the line of a response where its first wrong step stands: up to there it is the
    right solution, which can be written in one way only. None where no step is wrong, or where the
    question is not of this kind."""
    asked = QUESTION.fullmatch(question)
    if asked:
        right = [f"{a}{op}{b}={digit}" for a, op, b, digit in solve(asked[1])]
        for (number, step), expected in zip(lines_of(STEP, response), right):
            if step[0] != expected:
                return number
    return None


def first_objection(critique):
    """The number of the line of a critique where its first `no` stands; None if there is none."""
    for number, step in lines_of(CHECKED, critique):
        if step[2]:
            return number
    return None


def is_sound(question, response, critique):
    """A critique calls a wrong response wrong: is its reason right? It must repeat the steps up to
    the first wrong one and say its first `no` there, and no `no` to a step that holds as it stands.
    (After the first wrong step others may be wrong too; it need not find these.)"""
    wrong = first_wrong(question, response)
    end = first_objection(critique)
    if wrong is None or end is None:
        return False
    steps = [step[0] for number, step in lines_of(STEP, response) if number <= wrong]
    repeated = []
    for number, step in lines_of(CHECKED, critique):
        if number <= end:
            repeated.append(step[1])
        a, op, b, digit = STEP.fullmatch(step[1]).groups()
        holds = int(digit) == last_digit(int(a), op, int(b))
        if step[2] and holds:
            return False
    return steps == repeated


def soundness(critiques):
    """{"sound": the share of right judgements of wrong responses, Samples, whose reason is right};
    {} unless all critiques are of questions of this kind."""
    readable = [QUESTION.fullmatch(critique.problem.question) for critique in critiques]
    if not readable or not all(readable):
        return {}
    sound = []
    for critique in critiques:
        pair = critique.pair
        if critique.says_right is False and not pair.right:
            sound.append(is_sound(pair.problem.question, pair.response, critique.text))
    return {"sound": sum(sound) / len(sound) if sound else None}
