"""Problems, outcome rewards, balanced resampling and group advantages. No model in here: text and numbers only.

Equations 1-6 are those of GC-RL (arXiv 2602.22765), the shaped reward is SCoRe's (arXiv 2409.12917), the group-relative
advantage is GRPO's (arXiv 2402.03300).

    python reward.py               a few responses on their way through rewards, filter, cache and advantages
"""
import json
import random
import re
import zlib
from dataclasses import dataclass
from fractions import Fraction

import torch

from rollout import InputError


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str             # the reference: a number, an expression or text; `... #### 42` is understood


@dataclass(frozen=True)
class Pair:
    """A response on its way to the critic."""
    problem: Problem
    response: str
    right: bool             # its outcome, R(r) = 1
    accuracy: float = 0.5   # E[R(r)] of the responses that it was drawn from, for eq. 3


# ------------------------------------------------------------------------------------------------------ problems

def read_jsonl(path, check):
    """The lines of a JSONL file as [check(object)]; blank lines are passed over.

    `check` raises ValueError or KeyError on an object it cannot use. Raises InputError with file and line number.
    """
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    rows.append(check(json.loads(line)))
                except json.JSONDecodeError as error:
                    raise InputError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
                except (KeyError, TypeError, ValueError, RecursionError) as error:
                    reason = f"no field {error}" if isinstance(error, KeyError) else error
                    raise InputError(f"{path}:{number}: {reason}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise InputError(f"{path}: the file is empty")
    return rows


def text_field(row, name):
    """A field that must hold text (a number is taken as its text)."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} must be a text that is not empty")
    value.encode()          # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value


def load_problems(path):
    """Problems from a JSONL file with `question` and `answer` on every line."""
    return read_jsonl(path, lambda row: Problem(text_field(row, "question"), text_field(row, "answer")))


# The toy: last-digit arithmetic with precedence. A response is one step a line and the boxed result.

def toy_step(a, op, b, doubt=0.0, rng=None):
    """The last digit of `a op b`, or, with probability `doubt` where it is one of the 24% of facts that the teacher of
    the toy's demonstrations does not remember well, the wrong digit that this teacher has in mind instead."""
    result = {"+": a + b, "-": a - b, "*": a * b}[op] % 10
    secret = zlib.crc32(f"{a}{op}{b}".encode())
    return (result + 1 + secret // 100 % 9) % 10 if rng and secret % 100 < 24 and rng.random() < doubt else result


def toy_steps(expression, doubt=0.0, slip=0.0, rng=None):
    """The steps [(a, operator, b, result), ...] of '9-7*2-5', modulo 10: products first, then from left to right.

    Exact by default. doubt: see `toy_step`; slip: probability that a step goes astray at random, by a result or by a
    miscopied number. Later steps follow from what an earlier one gave.
    """
    numbers, operators, steps = [int(c) for c in expression[::2]], list(expression[1::2]), []
    while operators:
        i = operators.index("*") if "*" in operators else 0
        a, op, b = numbers[i], operators.pop(i), numbers.pop(i + 1)
        if rng and rng.random() < slip / 2:
            a = rng.randrange(10)
        numbers[i] = rng.randrange(10) if rng and rng.random() < slip / 2 else toy_step(a, op, b, doubt, rng)
        steps.append((a, op, b, numbers[i]))
    return steps


def toy_problem(rng, held_out=False, operations=3):
    """A random toy problem; one in eight, chosen by a hash of its text, is held out from demonstrations and RL."""
    while True:
        expression = str(rng.randrange(10)) + "".join(rng.choice("+-*") + str(rng.randrange(10)) for _ in range(operations))
        if (zlib.crc32(expression.encode()) % 8 == 0) == held_out:
            return Problem(f"Compute {expression} modulo 10.", str(toy_steps(expression)[-1][3]))


def toy_problems(count, seed, held_out=False):
    """`count` different toy problems; raises InputError for more than there are."""
    if count > 30000:
        raise InputError(f"{count} toy problems: there are not many more than 30000 that are held out")
    rng, found = random.Random(seed), {}
    while len(found) < count:
        found[toy_problem(rng, held_out)] = None
    return list(found)


# ------------------------------------------------------------------------------------- is the final answer right?

MAX_ANSWER = 1000           # characters in which a final answer must be found; bounds the work on hostile text
MAX_DIGITS = 300            # longer numbers are no answers
UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"(?:(?<![\w)\]}}.])([-+]))?(?:(\d{{1,9}})\s{{1,3}}(\d{{1,9}})\s?/\s?(\d{{1,9}})(?![\d.])"       # 1 1/2
                    rf"|({UNSIGNED})(?:\s{{0,3}}/\s{{0,3}}([-+]?(?:{UNSIGNED})))?)", re.ASCII)                       # 1/2, 1.5
FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-+]?)\s*([\d.,]+)\s*\}|()(\d))\s*(?:\{\s*([-+]?)\s*([\d.,]+)\s*\}|()(\d))", re.ASCII)
ANSWER_IS = re.compile(r"answer(?:\s{1,3}is(?![a-z'])|\s{0,3}:)[\s:*]{0,20}([^\n]{0,200})", re.IGNORECASE)
HASHES = re.compile(r"####[ \t]{0,20}([-+$(\\.\d][^\n]{0,200})")
UNIT = re.compile(r"(?:[^\W\d_]|[\s.,:;?'\"(){}\[\]/-]|\\[{}])*")                   # what may stand around a number: no operators,
VARIABLE = re.compile(r"(?<![^\W\d_])(?![mgshlLJWVKCF])[^\W\d_](?![^\W\d_])")       # no LaTeX commands and no single letters but units
AREA = re.compile(r"(?<![a-z])((?:[mckd]?m|in|ft|yd|mi|inch(?:es)?|feet|foot|yards?|miles?|met(?:er|re)s?|units?)\s?\}?)\s?\^"
                  r"\s?\{?[23]\}?", re.IGNORECASE)
DRESSING = re.compile(r"\\(?:left|right|displaystyle|quad|[()\[\]])|\\?[$%]|[€£¥°]|\^\s?\{?\s?\\circ\s?\}?")


def tidy(text):
    """Plain ASCII numbers out of LaTeX dressing: spacing, currency, percent, degrees, `\\text`, `\\frac{a}{b}` -> a/b."""
    text = text.replace("\u2212", "-").replace("\u2013", "-").replace("{,}", ",").replace("\u00a0", " ").replace("\u202f", " ")
    text = re.sub(r"\\[,;:! ]|~", " ", DRESSING.sub("", re.sub(r"(?<=\d)\s?(?:\\[,;:! ]|~)\s?(?=\d{3}(?!\d))", "", text)))
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?(?=\{)", " ", text)

    def fraction(found):
        top_sign, top, bottom_sign, bottom = (found[i] or found[i + 2] or "" for i in (1, 2, 5, 6))
        negative = (top_sign == "-") != (bottom_sign == "-")
        return f" -{top}/{bottom}" if negative else f" {top}/{bottom}"
    return re.sub(r"-\s{0,3}(?=\d+(?:\.\d+)?/)", "-", FRAC.sub(fraction, text))


def to_fraction(found):
    """The exact value of a NUMBER match; None for one too long or divided by zero."""
    if found.end() - found.start() > MAX_DIGITS:
        return None
    sign, whole, top, bottom, number, divisor = found.groups()
    if whole is not None:
        number, divisor = f"{int(whole) * int(bottom) + int(top)}", bottom
    value = Fraction(number.replace(",", "")), Fraction((divisor or "1").replace(",", ""))
    return None if value[1] == 0 else value[0] / value[1] * (-1 if sign == "-" else 1)


def number(text):
    """The exact value of a text that is one number with at most a name before (`x = `) and a unit behind it; else None."""
    text = AREA.sub(r"\1", tidy(text[:MAX_ANSWER])).rpartition("=")[2].strip(" \t\r\n*_`").rstrip(".,;:").lstrip(",;:")
    text = re.sub(r"^([-+])\s+", r"\1", text)
    found = list(NUMBER.finditer(text))
    if len(found) != 1:
        return None
    rest = text[:found[0].start()] + " " + text[found[0].end():]
    return to_fraction(found[0]) if UNIT.fullmatch(rest) and not VARIABLE.search(rest) else None


def boxed(text):
    """The content of the last complete `\\boxed{...}`; None without one. Looks at the last 20 boxes at most."""
    end = len(text)
    for _ in range(20):
        end = text.rfind("\\boxed", 0, end)
        if end < 0:
            return None
        content, depth, opening = text[end + 6:end + 6 + MAX_ANSWER].lstrip(), 0, None
        for brace in re.finditer(r"\\[{}]|[{}]", content):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            opening = brace.end() if opening is None else opening
            if depth <= 0:
                break
        if content.startswith("{") and depth == 0:
            return content[opening:brace.start()]
    return None


def last_number(text):
    """The value of the last number in free text, or None."""
    end = 1 + max(text.rfind(digit) for digit in "0123456789")
    found = None
    for found in NUMBER.finditer(tidy(text[max(0, end - MAX_ANSWER):end + 10])):
        pass
    return None if found is None else to_fraction(found)


def answer_text(text):
    """What a text names as its answer: the last box, the line behind the last `####`, the words behind the last
    `answer is`; None if it names none. Returns (kind, text)."""
    inside = boxed(text)
    if inside is not None:
        return "boxed", inside
    for kind, pattern in (("hash", HASHES), ("is", ANSWER_IS)):
        found = None
        for found in pattern.finditer(text):
            pass
        if found:
            return kind, re.split(r"\.(?:\s|$)", found[1])[0]
    return None, None


def final_answer(text):
    """The exact value of a response's final answer: last `\\boxed{}`, `#### x`, "the answer is x", else the last number.

    Percent signs, currency and units are dropped: 50% and 50 are the same answer, and 0.5 is another.
    """
    kind, named = answer_text(text)
    if kind is None:
        return last_number(text)
    value = number(named)
    if value is None and kind != "boxed" and "\\" not in tidy(named):      # a sentence: its first number, or the one behind
        found = NUMBER.search(tidy(named).rpartition("=")[2])              # its last equals sign
        value = to_fraction(found) if found else last_number(text) if kind == "is" else None
    return value


def plain(text):
    """A textual answer reduced to what is compared: no spaces, braces, markup, case or final stop."""
    return re.sub(r"[\s{}*_`]", "", tidy(text[:MAX_ANSWER])).lower().rstrip(".")


def answer_key(response):
    """What answers are compared and counted by: an exact number, else the named answer's text, else None."""
    value = final_answer(response)
    if value is None:
        named = answer_text(response)[1]
        return plain(named) or None if named else None
    return value


def is_correct(response, answer):
    """R(r) = 1: does the free text of a response end in the reference answer? Exact, in linear time, nothing evaluated.

    Numbers are compared as rationals; where the reference is no number (`x+1`, `blue`), tidied texts are compared.
    """
    kind, named = answer_text(answer)
    reference = named if kind in ("boxed", "hash") else answer
    value = number(reference)
    if value is not None:
        return final_answer(response) == value
    named = plain(answer_text(response)[1] or "")
    return named != "" and named == plain(reference)


# ------------------------------------------------------------------------------------------------------- rewards

def response_reward(response, answer):
    """Eq. 1: R(r) = 1 if the final answer is right, else 0."""
    return float(is_correct(response, answer))


def critique_reward(judged, right, if_right=0.7, if_wrong=0.7):
    """Eq. 2: R(c) = 0.7 if the judgement (True, False, None: unreadable) agrees with the outcome, else 0.

    Eq. 5 (lean to precision) is if_right=0.6, if_wrong=0.8; eq. 6 (lean to recall) is if_right=0.8, if_wrong=0.6.
    """
    return (if_right if right else if_wrong) if judged is right else 0.0


def reweighted_reward(judged, right, accuracy):
    """Eq. 3: 0.35/E[R(r)] for a right call on a right response, 0.35/(1 - E[R(r)]) on a wrong one, else 0.

    accuracy: E[R(r)] over the responses that the pairs were drawn from. For use without the filter: both labels then
    carry the same total weight however rare one of them is.
    """
    return 0.35 / (accuracy if right else 1 - accuracy) if judged is right else 0.0


def denoising_reward(judged, refined):
    """Eq. 4, added to eq. 2: with k of m refined responses right, 0.1 k/m if judged right, 0.7 k/m if judged wrong.

    refined: one bool for each refined response. A critique that calls a solution wrong must help to mend it.
    """
    return 0.0 if judged is None else (0.1 if judged else 0.7) * sum(refined) / len(refined)


def shaped_reward(first, second, alpha):
    """SCoRe, Stage II: r(y2) + alpha (r(y2) - r(y1)), the reward of the second attempt."""
    return second + alpha * (second - first)


# -------------------------------------------------------------------------------------------- balanced resampling

def filter_pairs(groups, rng):
    """The data filter. groups: for each question its [Pair, ...]. Keeps one right and one wrong response, drawn at
    random, of every question that has both; drops the others."""
    kept = []
    for pairs in groups:
        right, wrong = [p for p in pairs if p.right], [p for p in pairs if not p.right]
        if right and wrong:
            kept += [rng.choice(right), rng.choice(wrong)]
    return kept


class PairCache:
    """The question-response cache: pairs wait here for the critic and leave when drawn (draw without replacement).

    Bounded: beyond `capacity` the oldest go first, since the policy has moved furthest from them; `dropped` counts
    them. A draw of more pairs than it holds returns all of them: the critics' batch is then smaller, nothing is
    critiqued twice, and the caller logs how many there were.
    """

    def __init__(self, capacity):
        self.capacity, self.pairs, self.dropped = capacity, [], 0

    def __len__(self):
        return len(self.pairs)

    def add(self, pairs):
        self.pairs += pairs
        surplus = max(0, len(self.pairs) - self.capacity)
        self.pairs, self.dropped = self.pairs[surplus:], self.dropped + surplus

    def draw(self, count, rng):
        chosen = set(rng.sample(range(len(self.pairs)), min(count, len(self.pairs))))
        drawn = [pair for i, pair in enumerate(self.pairs) if i in chosen]
        self.pairs = [pair for i, pair in enumerate(self.pairs) if i not in chosen]
        return drawn


# ----------------------------------------------------------------------------------------------------- advantages

def advantages(rewards, groups, std=True):
    """A = (R - mean of the group) / (std of the group + 1e-6), or without the division (as in Dr. GRPO, 2503.20783).

    rewards: numbers [samples]; groups: one hashable key for each. Returns a float tensor [samples]. std is the
    population's (the group is all there is). A group without spread gets exact zeros: rounding must not become a
    gradient. Where a group is one pair's critiques, the division cancels every constant of eqs. 2, 3, 5 and 6.
    """
    rewards, groups = torch.as_tensor(rewards, dtype=torch.float64), list(groups)
    if rewards.dim() != 1 or len(rewards) != len(groups):
        raise InputError(f"advantages: {tuple(rewards.shape)} rewards for {len(groups)} groups")
    members, result = {}, torch.zeros(len(groups))
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    for index in members.values():
        r = rewards[index]
        if r.min() < r.max():
            result[index] = ((r - r.mean()) / (r.std(correction=0) + 1e-6 if std else 1.0)).float()
    return result


if __name__ == "__main__":
    rng = random.Random(0)
    problem = Problem("Compute 3*4+5 modulo 10.", "7")
    texts = ["3*4=2\n2+5=7\n\\boxed{7}", "3*4=2\n2+5=8\n\\boxed{8}", "So the answer is 7.", "3*4=4\n4+5=9\n\\boxed{9}"]
    rewards = [response_reward(text, problem.answer) for text in texts]
    print(problem.question, "reference", problem.answer)
    for text, reward, advantage in zip(texts, rewards, advantages(rewards, [0] * 4).tolist()):
        print(f"  {text!r:35} R(r) = {reward:.0f}   advantage {advantage:+.2f}")
    cache = PairCache(capacity=100)
    cache.add(filter_pairs([[Pair(problem, text, reward == 1) for text, reward in zip(texts, rewards)]], rng))
    print(f"the filter keeps one right and one wrong response; the cache holds {len(cache)}")
    for pair in cache.draw(2, rng):
        print(f"  {pair.response!r}")
        for judged in (True, False, None):
            print(f"    judged {str(judged):5}  eq. 2: {critique_reward(judged, pair.right):.2f}   "
                  f"eq. 3 at accuracy 0.5: {reweighted_reward(judged, pair.right, 0.5):.2f}   "
                  f"eq. 4 adds, if refined right: {denoising_reward(judged, [True]):.2f}")
    print(f"the cache holds {len(cache)}: pairs are drawn without replacement")
