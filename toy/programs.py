"""Small functions for a real model to write: `Write a Python function f(n) that returns 3 times n.`

    python -m toy.programs FOLDER

FOLDER gets train.jsonl (200 functions), held_out.jsonl (200) and critiques.jsonl: demonstrations
for `train.py --cold-start` of 128 critiques, and of the 64 solutions among them that are right. A
kind of function is a row of ALONE or of FIRST, or one of FIRST with one of SECOND behind it. Of the
held-out functions half are of kinds that are not trained; the others differ from trained ones in
their numbers alone, as those that are criticised do. No function is in two files.

Each function has three tests, which are not part of the question. They tell it from its slips, from
its first operation alone, and from a function that returns what it is given.
"""

import ast
import random
import re
import sys
from collections import namedtuple
from itertools import cycle, islice, product
from pathlib import Path

from details.data import InputError, run_command, write_jsonl

TRAIN = 200
HELD_OUT = 100  # of kinds that are trained, and as many of others
UNSEEN = 40  # kinds that are held out
CRITICISED = 64  # functions, each with a right and a wrong solution

# The arguments | what is returned | a solution | a slip, or two. {a} is a number from 2 to 12.
ALONE = """
n       | {x} minus {a}                                | {x} - {a}            | {x} + {a}
n       | {x} divided by {a}                           | {x} / {a}            | {x} * {a}
n       | {x} to the power of {a}                      | {x} ** {a}           | {x} * {a}
n       | the remainder of {x} divided by {a}          | {x} % {a}            | {x} // {a}
n       | the larger of {x} and {a}                    | max({x}, {a})        | min({x}, {a})
n       | the smaller of {x} and {a}                   | min({x}, {a})        | max({x}, {a})
n       | the square of {x}                            | {x} ** 2             | {x} * 2
n       | the cube of {x}                              | {x} ** 3             | {x} * 3
n       | half of {x}                                  | {x} / 2              | {x} * 2
n       | the absolute value of {x}                    | abs({x})             | -{x}
n       | True if {x} is even, else False              | {x} % 2 == 0         | {x} % 2 == 1
n       | True if {x} is odd, else False               | {x} % 2 == 1         | {x} % 2 == 0
n       | True if {x} is divisible by {a}, else False  | {x} % {a} == 0       | {x} // {a} == 0
n       | True if {x} is equal to {a}, else False      | {x} == {a}           | {x} != {a}
a, b    | {x} minus {y}                                | {x} - {y}            | {y} - {x}
a, b    | the larger of {x} and {y}                    | max({x}, {y})        | min({x}, {y})
a, b    | the average of {x} and {y}                   | ({x} + {y}) / 2      | {x} + {y} / 2
a, b    | True if {x} and {y} are equal, else False    | {x} == {y}           | {x} != {y}
a, b    | True if {x} is larger than {y}, else False   | {x} > {y}            | {x} >= {y}
numbers | how many times {a} is in {x}                 | {x}.count({a})       | len({x})
numbers | the even numbers in {x} | [n for n in {x} if n % 2 == 0] | [n for n in {x} if n % 2 == 1]
numbers | the odd numbers in {x} | [n for n in {x} if n % 2 == 1] | [n for n in {x} if n % 2 == 0]
numbers | the numbers in {x} above {a} | [n for n in {x} if n > {a}] | [n for n in {x} if n < {a}]
numbers | the numbers in {x} below {a} | [n for n in {x} if n < {a}] | [n for n in {x} if n > {a}]
numbers | {x} with each number multiplied by {a} | [n * {a} for n in {x}] | [n + {a} for n in {x}]
numbers | {x} with {a} added to each number | [n + {a} for n in {x}] | [n * {a} for n in {x}]
numbers | the list of the squares of {x} | [n ** 2 for n in {x}] | [n * 2 for n in {x}]
numbers | the first {a} elements of {x}                | {x}[:{a}]            | {x}[{a}:]
numbers | the last {a} elements of {x}                 | {x}[-{a}:]           | {x}[:{a}]
numbers | {x} repeated three times                     | {x} * 3              | {x} + {x}
numbers | {x} with {a} added at the end                | {x} + [{a}]          | [{a}] + {x}
numbers | {x} in reverse order                         | {x}[::-1]            | sorted({x})
numbers | {x} in ascending order                       | sorted({x})          | {x}[::-1]
numbers | {x} in descending order | sorted({x}, reverse=True) | sorted({x})
numbers | True if {a} is in {x}, else False            | {a} in {x}           | {a} not in {x}
text    | {x} in upper case                            | {x}.upper()          | {x}.lower()
text    | {x} in lower case                            | {x}.lower()          | {x}.upper()
text    | {x} reversed                                 | {x}[::-1]            | {x}[:-1]
text    | {x} without spaces                           | {x}.replace(' ', '') | {x}.strip()
text    | {x} repeated three times                     | {x} * 3              | {x} + '3'
text    | {x} followed by '{a}'                        | {x} + '{a}'          | '{a}' + {x}
text    | '{a}' followed by {x}                        | '{a}' + {x}          | {x} + '{a}'
text    | the first character of {x}                   | {x}[0]               | {x}[-1]
text    | the last character of {x}                    | {x}[-1]              | {x}[0]
text    | the first {a} characters of {x}              | {x}[:{a}]            | {x}[{a}:]
text    | the list of the words in {x}                 | {x}.split()          | list({x})
text    | how many times the letter 'e' is in {x}      | {x}.count('e')       | len({x})
text    | True if {x} is the same backwards, else False | {x} == {x}[::-1]     | {x} != {x}[::-1]
text    | True if {x} has over {a} characters, else False | len({x}) > {a} | len({x}) < {a}
"""
FIRST = """
a, b    | the sum of {x} and {y}     | {x} + {y} | {x} * {y}
a, b    | the product of {x} and {y} | {x} * {y} | {x} + {y}
numbers | the sum of {x}             | sum({x})  | len({x})
numbers | the largest number in {x}  | max({x})  | min({x}) ; {x}[0]
numbers | the smallest number in {x} | min({x})  | max({x}) ; {x}[0]
numbers | the length of {x}          | len({x})  | sum({x})
numbers | the first element of {x}   | {x}[0]    | {x}[-1] ; max({x})
numbers | the last element of {x}    | {x}[-1]   | {x}[0] ; max({x})
text    | the length of {x}          | len({x})  | len({x}.split())
"""
SECOND = """
n | {a} times {x}                               | {a} * {x} | {x} + {a}
n | {x} plus {a}                                | {x} + {a} | {x} * {a}
n | {a} minus {x}                               | {a} - {x} | {x} - {a}
n | True if {x} is larger than {a}, else False  | {x} > {a} | {x} >= {a}
n | True if {x} is smaller than {a}, else False | {x} < {a} | {x} <= {a}
"""

TEXTS = ["red", "Anna", "Banana", "so it is", "level", "x y z"]

# asked, right and each of wrong have {x} and {y} for the arguments.
Function = namedtuple("Function", "name question takes asked right wrong calls")


def rows(table):
    return re.findall("(.+?) +[|] (.+?) +[|] (.+?) +[|] (.+)", table)


def apply(expression, x):
    return expression.format(x=f"({x})", y="({y})")


def fill(template, words):
    """With words for the arguments, one or two."""
    return template.format(x=words[0], y=words[-1])


def value(expression, call):
    """What a call returns."""
    return eval(fill(expression, call))


def draw_call(takes, rng):
    """The arguments of a call, as they are written."""
    if takes == "text":
        return [repr(rng.choice(TEXTS))]
    if takes == "numbers":
        return [str(rng.choices(range(-3, 10), k=rng.randint(1, 3)))]
    return [str(rng.randint(-5, 12)) for _ in takes.split()]


def draw(kind, rng):
    """A function of a kind, with numbers and calls that tell it from what is wrong."""
    takes = kind[0][0]
    while True:
        asked = "{x}"
        right = "{x}"
        wrong = []
        for row in kind:
            number = str(rng.randint(2, 12))
            _, words, solution, slip = [cell.replace("{a}", number) for cell in row]
            # Of two operations either may have its slip, or the second be forgotten.
            wrong = [apply(solution, other) for other in wrong] + [right] * len(wrong)
            wrong += [apply(each, right) for each in slip.split(" ; ")]
            right = apply(solution, right)
            asked = words.format(x=asked, y="{y}")
        calls = [draw_call(takes, rng) for _ in range(3)]
        results = [[value(each, call) for call in calls] for each in (right, *wrong, "{x}")]
        if results[0] not in results[1:] and results[0][0] != results[0][1]:
            name = rng.choice("fgh")
            returned = fill(asked, takes.split(", "))
            question = f"Write a Python function {name}({takes}) that returns {returned}."
            return Function(name, question, takes, asked, right, wrong, calls)


def functions(kinds, rng):
    """Without end: one of each kind by turns, no function twice."""
    used = set()
    for kind in cycle(kinds):
        function = draw(kind, rng)
        key = function[2:4]  # takes, asked
        if key not in used:
            used.add(key)
            yield function


def problem(function):
    """A line of a data file."""
    name, question, _, _, right, _, calls = function
    tests = [f"assert {name}({', '.join(call)}) == {value(right, call)!r}" for call in calls]
    return {"question": question, "tests": tests}


def criticised(function, name, expression):
    """A demonstration of a critique, of a solution with this name and expression. A right solution
    is learned, too: after critiques alone the model answers any question by a critique."""
    wanted, _, takes, asked, right, _, calls = function
    # One that goes wrong, if there is one.
    call = max(calls, key=lambda call: value(expression, call) != value(right, call))
    arguments = ", ".join(call)
    # Without the brackets that it does not need.
    body = ast.unparse(ast.parse(fill(expression, takes.split(", ")), mode="eval"))
    verdict, label = "no", "wrong"
    if name == wanted and expression == right:
        verdict, label = "ok", "right"
    return problem(function) | {
        "response": f"```python\ndef {name}({takes}):\n    return {body}\n```",
        "critique": f"{wanted}({arguments}) should be {fill(asked, call)} = "
        f"{value(right, call)!r}\n"
        f"{name}({arguments}) is {body} = {value(expression, call)!r}: {verdict}\n"
        f"Conclusion: {label}",
        "label": label,
    }


def make(folder):
    rng = random.Random(0)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [[row] for row in rows(ALONE + FIRST + SECOND)]
    kinds += product(rows(FIRST), rows(SECOND))
    rng.shuffle(kinds)
    unseen = functions(kinds[:UNSEEN], rng)
    trained = functions(kinds[UNSEEN:], rng)
    write_jsonl(folder / "train.jsonl", map(problem, islice(trained, TRAIN)))
    held_out = []
    for both in zip(islice(trained, HELD_OUT), unseen):
        held_out += both
    write_jsonl(folder / "held_out.jsonl", map(problem, held_out))
    critiques = []
    for function in islice(trained, CRITICISED):
        # A name of its own is the slip that the model is most apt to make.
        slips = [("solve", function.right)]
        slips += [(function.name, wrong) for wrong in function.wrong]
        critiques += [
            criticised(function, function.name, function.right),
            criticised(function, *rng.choice(slips)),
        ]
    write_jsonl(folder / "critiques.jsonl", critiques)
    print(f"{folder}: {TRAIN} to train on, {2 * HELD_OUT} held out, {2 * CRITICISED} critiques")


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError("name one folder: python -m toy.programs FOLDER")
    make(argv[0])


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
