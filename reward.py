"""Problems, outcome rewards, balanced resampling and group advantages: no model, text and numbers.

Equations 1-6 are those of GC-RL (arXiv 2602.22765), the shaped reward is that of SCoRe (arXiv
2409.12917), the group-relative advantage that of GRPO (arXiv 2402.03300).
"""

import http.client
import json
import re
import sys
from collections import deque
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong, where."""


def exits(program, *args):
    """Run a program of the command line: what the user got wrong ends it with one line."""
    try:
        program(*args)
    except (InputError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error):
    return " ".join(str(error).split())[:300]


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str  # the reference: a number, an expression or text; `... #### 42` is understood


@dataclass(frozen=True)
class Pair:
    """A response on its way to the critic."""

    problem: Problem
    response: str
    right: bool  # its outcome, R(r) = 1
    accuracy: float = 0.5  # E[R(r)] of the responses that it was drawn from, for eq. 3


# ----------------------------------------------------------------------------------------- files


def read_jsonl(path, check):
    """[check(object)] for the lines of a JSONL file; blank lines are passed over.

    `check` raises ValueError or KeyError on an object that it cannot use. Raises InputError with
    file and line number, OSError where there is no such file.
    """
    rows = []
    # bytes: \n, \r\n and \r end a line, no others
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                rows.append(check(json.loads(text)))
        except (KeyError, ValueError, RecursionError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{path}:{number}: {reason}") from error
    if not rows:
        raise InputError(f"{path}: the file is empty")
    return rows


def write_jsonl(path, rows, mode="w"):
    """mode "a" adds the rows behind those that are there."""
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def text_field(row, name):
    """A field of a JSON object that must hold text."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} must be a text that is not empty")
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value


def to_problem(row):
    """A JSON object's problem. The answer may be a number; some value must be readable in it."""
    question, answer = text_field(row, "question"), row["answer"]
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        row = {"answer": str(answer)}
    problem = Problem(question, text_field(row, "answer"))
    if to_number(reference(problem.answer)) is None and not plain(reference(problem.answer)):
        raise ValueError(f"field 'answer': no value can be read from {problem.answer[:60]!r}")
    return problem


from_problem = asdict  # the JSON object again


def to_pair(row):
    """A JSON object's pair: question, answer, response, label (true: right)."""
    response, right = text_field(row, "response"), row["label"]
    if not isinstance(right, bool):
        raise ValueError("field 'label' must be true or false")
    return Pair(to_problem(row), response, right)


def from_pair(pair):
    return from_problem(pair.problem) | {"response": pair.response, "label": pair.right}


GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"


def load_problems(name, split="train"):
    """Problems from a JSONL file with `question` and `answer` on every line, or from `gsm8k`,
    which is downloaded once (5 MB) to torch's hub folder."""
    if name != "gsm8k":
        return read_jsonl(name, to_problem)
    path, url = Path(torch.hub.get_dir()) / "gsm8k" / f"{split}.jsonl", f"{GSM8K}{split}.jsonl"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, http.client.HTTPException) as error:
            remedy = "fetch it by hand: --data train.jsonl --eval-data test.jsonl"
            raise InputError(f"gsm8k: cannot download {url} ({error}); {remedy}") from error
    return read_jsonl(path, to_problem)


def load_split(data, eval_data=None, size=None):
    """(training problems, at most `size` held-out problems); no question is in both.

    Without `eval_data`: gsm8k has a test file, of other files the last tenth is held out.
    """
    train = load_problems(data)
    if eval_data or data == "gsm8k":
        held_out = load_problems(eval_data or data, "test")
    else:
        cut = len(train) - max(1, len(train) // 10)
        train, held_out = train[:cut], train[cut:]
    held_out = held_out[:size]
    questions = {p.question for p in held_out}
    train = [p for p in train if p.question not in questions]
    if not train:
        raise InputError(f"--data {data}: no problem is left to train on without the held-out ones")
    return train, held_out


# -------------------------------------------------------------------- is the final answer right?

MAX_ANSWER = 1000  # characters in which a final answer must be found: bounds the work on any text
MAX_DIGITS = 300  # longer numbers are no answers
UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?"
NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])([-+]))?"  # a sign, where it is no minus between two numbers
    r"(?:(\d{1,9})\s{1,3}(\d{1,9})\s?/\s?(\d{1,9})(?![\d.])"  # 1 1/2
    rf"|({UNSIGNED})(?:\s{{0,3}}/\s{{0,3}}([-+]?(?:{UNSIGNED})))?)",  # 1.5, 1,500, .5, 1e9, 3/2
    re.ASCII,
)
ARGUMENT = r"\s{0,9}(?:\{([^{}]{0,99})\}|(\d))"
FRACTION = re.compile(r"\\[dtc]?frac" + ARGUMENT * 2, re.ASCII)
ANSWER_IS = re.compile(r"(?i)answer(?:\s{1,3}is(?![a-z'])|\s{0,3}:)[\s:*]{0,20}([^\n]{0,200})")
HASHES = re.compile(r"####[ \t]{0,20}([-+$(\\.\d][^\n]{0,200})")
# What may stand around a number: names and units. No operators, no LaTeX commands, and no single
# letters but units of measurement: in `5x` or `n/2` the number is not the answer.
UNIT = re.compile(r"(?:[^\W\d_]|[\s.,:;?'\"(){}\[\]/-]|\\[{}])*")
VARIABLE = re.compile(r"(?<![^\W\d_])(?![mgshlLJWVKCF])[^\W\d_](?![^\W\d_])")
LENGTH = r"[mckd]?m|in|ft|yd|mi|inch(?:es)?|feet|foot|yards?|miles?|met(?:er|re)s?|units?"
AREA = re.compile(rf"(?<![a-z])((?:{LENGTH})\s?\}}?)\s?\^\s?\{{?[23]\}}?", re.IGNORECASE)
DRESSING = re.compile(
    r"\\(?:left|right|displaystyle|quad|[()\[\]])|\\?[$%]|[€£¥°]|\^\s?\{?\s?\\circ\s?\}?"
)
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)(?![a-zA-Z])(?:\s?\{([^{}]{0,200})\})?")
TEN_TO = re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|×)\s?10\s?\^\s?\{?\s?([-+]?\d{1,3})\s?\}?")


def tidy(text):
    """Text with plain ASCII numbers, out of their LaTeX dressing: spacing, currency, percent,
    degrees, `\\text`, `\\frac{1}{2}` -> 1/2, `3 \\times 10^5` -> 3e5."""
    for odd, plain_form in ("\u2212-", "\u2013-", "\u00a0 ", "\u202f "):
        text = text.replace(odd, plain_form)
    text = re.sub(r"(?<=\d)\s?(?:\\[,;:! ]|~)\s?(?=\d{3}(?!\d))", "", text.replace("{,}", ","))
    text = TEXT.sub(r" \1 ", re.sub(r"\\[,;:! ]|~", " ", DRESSING.sub("", text)))
    text = TEN_TO.sub(r"e\1", FRACTION.sub(simple_fraction, text))
    return re.sub(r"-\s{0,3}(?=\d+(?:\.\d+)?/)", "-", text)


def simple_fraction(found):
    """A FRACTION match of two numbers as top/bottom; one with letters stays as it is."""
    top, bottom = ((found[i] or found[i + 1] or "").replace(" ", "") for i in (1, 3))
    if not re.fullmatch(r"[-+]?[\d.,]+", top) or not re.fullmatch(r"[-+]?[\d.,]+", bottom):
        return found[0]
    sign = "-" if (top[0] == "-") != (bottom[0] == "-") else ""
    return f" {sign}{top.lstrip('+-')}/{bottom.lstrip('+-')}"


def to_fraction(found):
    """The exact value of a NUMBER match; None for one too long or divided by zero."""
    if found.end() - found.start() > MAX_DIGITS:
        return None
    sign, whole, top, bottom, number, divisor = found.groups()
    if whole is not None:
        number, divisor = str(int(whole) * int(bottom) + int(top)), bottom
    above, below = Fraction(number.replace(",", "")), Fraction((divisor or "1").replace(",", ""))
    return None if below == 0 else above / below * (-1 if sign == "-" else 1)


def to_number(text):
    """The exact value of a text that is one number, with at most a name before it (`x = `) and a
    unit behind; else None."""
    text = AREA.sub(r"\1", tidy(text[:MAX_ANSWER])).rpartition("=")[2]
    text = text.strip(" \t\r\n*_`").rstrip(".,;:").lstrip(",;:")
    text = re.sub(r"^([-+])\s+", r"\1", text)
    found = list(NUMBER.finditer(text))
    if len(found) != 1:
        return None
    rest = text[: found[0].start()] + " " + text[found[0].end() :]
    return to_fraction(found[0]) if UNIT.fullmatch(rest) and not VARIABLE.search(rest) else None


def last_match(pattern, text):
    return [None, *pattern.finditer(text)][-1]


def last_number(text):
    """The value of the last number in free text, or None."""
    end = 1 + max(text.rfind(digit) for digit in "0123456789")
    found = last_match(NUMBER, tidy(text[max(0, end - MAX_ANSWER) : end + 10]))
    return found and to_fraction(found)


def boxed(text):
    """The content of the last complete `\\boxed{...}` among the last 20; None without one."""
    end = len(text)
    for _ in range(20):
        end = text.rfind("\\boxed", 0, end)
        if end < 0:
            return None
        content, depth = text[end + 6 : end + 6 + MAX_ANSWER].lstrip(), 0
        for brace in re.finditer(r"\\[{}]|[{}]", content):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth <= 0:
                break
        if content.startswith("{") and depth == 0:
            return content[1 : brace.start()]
    return None


def named_answer(text):
    """What a text names as its answer, as (kind, text): its last box, the line behind its last
    `####`, or the words behind its last `answer is`. (None, None) if it names none."""
    inside = boxed(text)
    if inside is not None:
        return "boxed", inside
    for kind, pattern in (("hash", HASHES), ("is", ANSWER_IS)):
        found = last_match(pattern, text)
        if found:
            return kind, re.split(r"\.(?:\s|$)", found[1])[0]
    return None, None


def final_answer(text):
    """The exact value of the answer that a response ends in, or None: what it names as its answer
    (`\\boxed{x}`, `#### x`, "the answer is x"), else its last number.

    Percent signs, currency and units are dropped: 50% and 50 are the same answer, 0.5 is another.
    """
    kind, named = named_answer(text)
    if kind is None:
        return last_number(text)
    value = to_number(named)
    if value is None and kind != "boxed" and "\\" not in tidy(named):  # a sentence
        found = NUMBER.search(tidy(named).rpartition("=")[2])
        value = to_fraction(found) if found else last_number(text) if kind == "is" else None
    return value


def plain(text):
    """A textual answer reduced to what is compared: no spaces, markup, case or final stop, and one
    way to write an argument: `x^2` is `x^{2}`, `\\dfrac ab` is `\\frac{a}{b}`, `(B)` is `b`."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", tidy(text[:MAX_ANSWER]))
    text = re.sub(r"[\s*`]", "", text).strip("_").lower().rstrip(".")
    text = re.sub(r"([\^_])([-+]?\d+|[a-z]|\\[a-z]+)", r"\1{\2}", text)
    for _ in range(2):  # \frac has two arguments
        text = re.sub(r"(\\sqrt|\\frac(?:\{[^{}]*\})?)(\d|[a-z]|\\[a-z]+)", r"\1{\2}", text)
    text = re.sub(r"(?<![\w^}\]\\])\{([^{}]*)\}", r"\1", text)  # braces that are no argument's
    return re.sub(r"^\(([a-z])\)$", r"\1", text)


def answer_key(response):
    """What answers are compared and counted by: an exact number, else the named answer's text, else
    None."""
    value = final_answer(response)
    return plain(named_answer(response)[1] or "") or None if value is None else value


def reference(answer):
    """The part of a reference answer that counts: its box, the line behind `####`, or all."""
    inside, (_, mark, behind) = boxed(answer), answer.rpartition("####")
    return inside if inside is not None else behind.strip().split("\n")[0] if mark else answer


def is_correct(response, answer):
    """R(r) = 1: does the free text of a response end in the reference answer?

    Numbers are compared as rationals; where the reference is no number (`x+1`, `blue`), tidied
    texts are compared. Exact, in linear time, nothing is evaluated.
    """
    value = to_number(reference(answer))
    if value is not None:
        return final_answer(response) == value
    text = plain(named_answer(response)[1] or "")
    return text != "" and text == plain(reference(answer))


# --------------------------------------------------------------------------------------- rewards


def response_reward(response, answer):
    """Eq. 1: R(r) = 1 if the final answer is right, else 0."""
    return float(is_correct(response, answer))


def critique_reward(judged, right, if_right=0.7, if_wrong=0.7):
    """Eq. 2: R(c) = 0.7 if the judgement (True, False, None: unreadable) agrees with the outcome
    of the response, else 0.

    Eq. 5 (lean to precision) is if_right=0.6, if_wrong=0.8; eq. 6 (lean to recall) the reverse.
    """
    return (if_right if right else if_wrong) if judged is right else 0.0


def reweighted_reward(judged, right, accuracy):
    """Eq. 3: 0.35/E[R(r)] for a right call on a right response, 0.35/(1 - E[R(r)]) for one on a
    wrong response, else 0. For use without the filter: both labels then carry the same total
    weight, however rare one of them is.

    accuracy: E[R(r)] over the responses that the pairs were drawn from, which are those that ended
    by themselves: responses cut at the limit count neither here nor as pairs.
    """
    return 0.35 / (accuracy if right else 1 - accuracy) if judged is right else 0.0


def denoising_reward(judged, refined):
    """Eq. 4, added to eq. 2 or 3: with k of m refined responses right, 0.1 k/m if the response was
    judged right, 0.7 k/m if judged wrong: a critique that says `wrong` must help to mend it.

    refined: the outcomes R of the m responses that were sampled with the critique in view.
    """
    return 0.0 if judged is None else (0.1 if judged else 0.7) * sum(refined) / len(refined)


def shaped_reward(first, second, alpha):
    """SCoRe, Stage II: r(y2) + alpha (r(y2) - r(y1)), the reward of the second attempt."""
    return second + alpha * (second - first)


# --------------------------------------------------------------------------- balanced resampling


def filter_pairs(groups, rng):
    """The data filter. Keeps one right and one wrong response, drawn at random, of every question
    that has both, right before wrong; drops the others.

    groups: for each question its [Pair, ...].
    """
    kept = []
    for pairs in groups:
        right, wrong = [p for p in pairs if p.right], [p for p in pairs if not p.right]
        if right and wrong:
            kept += [rng.choice(right), rng.choice(wrong)]
    return kept


class PairCache(deque):
    """The question-response cache: pairs wait here for the critic and leave when drawn.

    Bounded: beyond `maxlen` the oldest go first, since the policy has moved furthest from them.
    A draw of more pairs than it holds returns all of them: nothing is criticised twice, and the
    caller logs how many there were.
    """

    def draw(self, count, rng):
        """Up to `count` pairs, at random, without replacement."""
        chosen = sorted(rng.sample(range(len(self)), min(count, len(self))))
        drawn = [self[i] for i in chosen]
        for i in reversed(chosen):
            del self[i]
        return drawn


# ------------------------------------------------------------------------------------ advantages


def advantages(rewards, groups, std=True):
    """A = (R - mean of the group) / (std of the group + 1e-6), or without the division (as in
    Dr. GRPO, arXiv 2503.20783): a float tensor [samples].

    rewards: numbers [samples]; groups: one hashable key for each. std is the population's (the
    group is all there is). A group without spread gets exact zeros: rounding must not become a
    gradient. Where a group is one pair's critiques, its label is fixed and its rewards are 0 or a
    constant; the division then cancels every constant of eqs. 2, 3, 5 and 6.
    """
    rewards, groups = torch.as_tensor(rewards, dtype=torch.float64), list(groups)
    members, result = {}, torch.zeros(len(groups))
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    for index in members.values():
        r = rewards[index]
        if r.min() < r.max():
            scale = r.std(correction=0) + 1e-6 if std else 1.0
            result[index] = ((r - r.mean()) / scale).float()
    return result
