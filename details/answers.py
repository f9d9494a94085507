"""Is the final answer of a response right? Exact, in linear time; nothing is evaluated."""

import re
from fractions import Fraction

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


def is_readable(answer):
    """Can a reference answer be reached by any response?"""
    return to_number(reference(answer)) is not None or plain(reference(answer)) != ""
