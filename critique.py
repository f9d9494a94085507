"""The prompts - solve, criticise, correct - and the judgement in a critique; demonstrations.

A prompt is a list of chat messages; `rollout.encode_chat` turns it into tokens. The first-order
rollout samples from `solve`, the second-order rollout from `critique`. `correct` asks for a refined
response, with a critique (the denoised reward, eq. 4 of arXiv 2602.22765) or without any hint (the
second attempt of SCoRe, arXiv 2409.12917).

    python critique.py FILE.jsonl     print demonstrations for `train.py --cold-start`, made from
                                      worked solutions in GSM8K's form (default: its training file)
"""

import ast
import contextlib
import json
import random
import re
import sys
from fractions import Fraction
from operator import add, mul, sub, truediv

from reward import InputError, exits, load_problems, read_jsonl, text_field, to_number

SOLVE = "{question}\nSolve it step by step. Put the final answer in \\boxed{{}}."

CRITIQUE = (
    "Problem: {question}\n\nSolution:\n{response}\n\nCheck the solution step by step. "
    "End with the line Conclusion: right or the line Conclusion: wrong."
)

# SCoRe's instruction p1: there may be an error; no word on whether or where (no oracle).
REWRITE = "Write the full solution again, corrected. Put the final answer in \\boxed{{}}."
CORRECT = "There may be an error above. " + REWRITE
CORRECT_WITH = "A critique of the solution above:\n{critique}\n\n" + REWRITE


def solve(question):
    """Chat messages that ask for a response to the question."""
    return [{"role": "user", "content": SOLVE.format(question=question)}]


def critique(question, response):
    """Chat messages that ask for a critique of a response.

    One user message: the critic is shown the response as somebody's text, not as its own turn,
    which it would defend.
    """
    return [{"role": "user", "content": CRITIQUE.format(question=question, response=response)}]


def correct(question, response, critique=None):
    """Chat messages that ask for a refined response: the real conversation, and a critique to go by
    where one is given."""
    request = (CORRECT if critique is None else CORRECT_WITH).format(critique=critique)
    answered = {"role": "assistant", "content": response}
    return [*solve(question), answered, {"role": "user", "content": request}]


# A line of its own. Around the word may stand markup and punctuation only, behind it a bracketed
# end mark: `**Conclusion:** Right. [END]`. RL teaches the format, so prose is not read, and a line
# in quotation marks is somebody else's. Repetitions are bounded: linear time.
JUDGEMENT = re.compile(
    r"(?im)^[ \t*_#`\-]{0,20}conclusion[\s*_:`\-]{1,20}(?:\\boxed\{)?(?:\\text\{)?(right|wrong)"
    r"[ \t*_.!`}]{0,20}(?:[\[<(][\w /|]{1,20}[\])>][ \t*_.]{0,9})?\r?$"
)


def judgement(text):
    """The last judgement in a critique: True (right), False (wrong), None (none can be read)."""
    calls = JUDGEMENT.findall(text)
    return calls[-1].lower() == "right" if calls else None


# -------------------------------------------------------------- demonstrations for a cold start


def load_demonstrations(path, held_out=()):
    """[(chat messages, completion)] from a JSONL file with question, response and optionally
    critique and label; and how many were left out, their questions being `held_out`.

    A response labelled wrong is shown to the critic only, never as a demonstration of solving. A
    critique must end in a judgement that agrees with the label. Raises InputError with the line.
    """

    def check(row):
        question, response = text_field(row, "question"), text_field(row, "response")
        label, examples = row.get("label"), []
        label = {"right": True, "wrong": False}.get(str(label), label)
        if label is not None and not isinstance(label, bool):
            raise ValueError(f"label {label!r}: must be right, wrong, true or false")
        if row.get("critique") is not None:
            text = text_field(row, "critique")
            call = judgement(text)
            if call is None:
                raise ValueError("the critique has no line `Conclusion: right` or `... wrong`")
            if label is not None and call != label:
                raise ValueError("the critique's conclusion contradicts the label")
            label = call
            examples.append((critique(question, response), text))
        examples += [(solve(question), response)] if label is not False else []
        return question in held_out, examples

    rows = read_jsonl(path, check)
    found = [example for hidden, examples in rows for example in examples if not hidden]
    if not found:
        raise InputError(f"{path}: no demonstration to learn from that is not held out")
    return found, sum(hidden for hidden, _ in rows)


STEP = re.compile(r"<<([^<>=]{1,60})=([^<>=]{1,20})>>")  # GSM8K's annotation of a step: <<48/2=24>>
OPERATORS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


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
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def demonstrate(problem, rng):
    """Two demonstrations from one annotated solution: it, criticised as right; and the same with
    one step broken and the consequences carried on, criticised as wrong.

    Raises ValueError where the solution has no annotations, or one that is not exact.
    """
    work, _, answer = problem.answer.partition("####")
    steps, changed, right_checks, wrong_checks = STEP.findall(work), {}, [], []
    broken = rng.randrange(len(steps)) if steps else None
    for i, (expression, result) in enumerate(steps):
        value, shown = calculate(expression, {}), calculate(expression, changed)
        if value < 0 or value != to_number(result):
            raise ValueError(f"{expression} is not {result}")
        if i == broken:
            shown += rng.choice([d for d in (-10, -2, -1, 1, 2, 10) if shown + d > 0] or [1])
        check = f"{expression.strip()} = {decimal(value)}: "
        verdict = "ok" if shown == value else f"no, the solution has {decimal(shown)}"
        right_checks.append(check + "ok")
        wrong_checks.append(check + verdict)
        if shown == value and value in changed:
            raise ValueError(f"{value} comes out twice, once broken and once not")
        if shown != value:
            changed[value] = shown
    reached = changed.get(to_number(answer))
    if reached is None:
        raise ValueError("the broken step does not change the answer, or there is no step")

    def renumber(found):
        number = Fraction(found[0].replace(",", ""))
        return decimal(changed[number]) if number in changed else found[0]

    cut = [found.start() for found in STEP.finditer(work)][broken]  # what stands before is true
    given, follows = STEP.sub("", work[:cut]), STEP.sub("", work[cut:])
    follows = re.sub(r"\d+(?:,\d{3})*(?:\.\d+)?", renumber, follows)

    def row(text, final, checks, call):
        response = f"{text.strip()}\nThe answer is \\boxed{{{final}}}."
        critique = "\n".join([*checks, f"Conclusion: {call}"])
        return dict(question=problem.question, response=response, critique=critique, label=call)

    right = row(STEP.sub("", work), answer.strip(), right_checks, "right")
    return [right, row(given + follows, decimal(reached), wrong_checks, "wrong")]


def print_demonstrations(data):
    """JSON lines for `train.py --cold-start` on standard output, a count on standard error."""
    problems, rng, used = load_problems(data), random.Random(0), 0
    for problem in problems:
        with contextlib.suppress(ValueError):  # not annotated, or not exactly
            print(*map(json.dumps, demonstrate(problem, rng)), sep="\n")
            used += 1
    print(f"{2 * used} demonstrations from {used} of {len(problems)} problems", file=sys.stderr)
    if not used:
        raise InputError(f"{data}: no answer is a worked solution with <<48/2=24>> annotations")


if __name__ == "__main__":
    exits(print_demonstrations, *sys.argv[1:2] or ["gsm8k"])
