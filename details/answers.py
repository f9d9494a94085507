r"""Is the final answer of a response right?

A response is graded in three stages. Take `So she pays 3.5 dollars: \boxed{\$\frac{7}{2}}.` and the
reference `3.50`. First the answer is found: the last box holds `\$\frac{7}{2}`. Then it is written
in one plain form, by the steps listed below: `7/2`. Last it is compared: both sides are numbers,
and as exact rationals 7/2 and 3.50 are equal. What is no number is compared as plain text.

A reference that is a number is matched only by that number, with a unit or a currency. Where the
grader cannot tell, as in `5 or 6`, the answer is wrong: to reward a wrong answer is worse than to
miss a right one. Nothing is evaluated, and the work on a text is bounded, however long it is.
"""

import functools
import re
from fractions import Fraction

REACH = 10_000  # An answer is looked for in this many characters at the end of a text.
LONGEST = 1000  # Of an answer, this many characters are read.


def steps(*pairs):
    """Pairs of a pattern and its replacement, ready for `rewrite`."""
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


def rewrite(text, table):
    for pattern, replacement in table:
        text = pattern.sub(replacement, text)
    return text


# ------------------------------------------------------------------- first stage: find the answer

# Braces in braces, as in \boxed{\frac{\sqrt{2}}{2}}, at most five deep.
BRACES = r"\{[^{}]{0,999}\}"
for _ in range(4):
    BRACES = rf"\{{[^{{}}]{{0,999}}(?:{BRACES}[^{{}}]{{0,999}}){{0,99}}\}}"

# A box: \boxed{24}, \fbox{24}, \boxed 24
BOX = re.compile(rf"\\(?:[bB]oxed|fbox)\s{{0,9}}({BRACES}|-?\d[\d.,]{{0,99}}|[a-zA-Z])")

# What a box holds that only shows how to write one: \boxed{}, \boxed{...}, \boxed{your answer}
PLACEHOLDER = re.compile(r"\{(?:\W|your|the|final|answer|number|result|here)*\}", re.IGNORECASE)

# What is said of an answer that was given before: the answer is correct.
VERDICT = (
    r"[\s*_]{1,9}(?:(?:indeed|also|still|not) )?(?:(?:in)?correct|right|wrong|consistent|valid)"
    r"[*_]{0,3}(?:[.,;:!]|\s*$|\s(?:as|because|since|and|with)\b)"
)

# Every mark is followed by the answer, up to the end of the line or a Chinese full stop.
MARK = re.compile(
    r"(?:"
    rf"(?<!/)answers?[*_]{{0,3}}\s{{0,3}}(?:(?:is|are)\b(?!{VERDICT})|[:：=])"  # the answer is 24
    r"|<answer>"  # <answer>24</answer>
    r"|answer[*_]{0,3}[ \t]{0,3}\n"  # a heading: ### Final Answer
    r"|答案[*_]{0,3}\s{0,3}[是为:：]"  # 答案是24
    r"|(?<!\#)\#{4}(?!\#)"  # GSM8K's #### 24, with words only on the last line
    r"(?=\s{0,9}(?:[-+$\\.\d]|[^\n]{1,999}\Z))(?!\s{0,9}\d{1,3}[.):]\s{1,9}\S)"  # no #### 2. Add
    r")(?:[\s:：*_]|\\[(\[]){0,20}(?=(\S[^\n。]{0,999}))",
    re.IGNORECASE,
)

# Where a sentence ends: 24. I checked it; 24</answer>
SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])|</")

# A response that is one letter, as in (B), chooses it.
CHOICE = re.compile(r"\(?([a-zA-Z])[).]{0,2}")


def marked_answer(text):
    """What stands in the last box, or behind a mark that comes after it; None without either."""
    answer = None
    behind = 0
    # The last box may lack its brace where the response was truncated.
    for box in [*BOX.finditer(text)] or BOX.finditer(text + "}"):
        if answer is None or not PLACEHOLDER.fullmatch(box[1]):
            answer = box[1].removeprefix("{").removesuffix("}")
            behind = box.end()
    for mark in MARK.finditer(text, behind):
        answer = SENTENCE_END.split(mark[1])[0]
    return answer


# ------------------------------------------------------------- second stage: write it in one form

# Characters that have a plain spelling.
CHARACTERS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full width: ２４ -> 24
CHARACTERS |= dict.fromkeys(map(ord, "\u200b\ufeff€£¥₹"), "")
CHARACTERS |= dict.fromkeys(map(ord, "\xa0\u202f\u2009\u3000"), " ")
CHARACTERS |= str.maketrans("−–“”’×·÷。、", '--""\'**/.,')
CHARACTERS |= str.maketrans({"≤": "<=", "≥": ">=", "≠": "!=", "≈": "=", "²": "^2", "³": "^3"})
CHARACTERS |= str.maketrans(
    {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup "}
)

FONT = r"\\(?:text\w{0,9}|math\w{0,9}|[mf]box|boxed|emph|underline)\s?\{([^{}]*)\}"
ARGUMENT = r"([^\s{}\\^_]|\\[a-zA-Z]+)"  # an argument without braces: 2, x, \pi

# What an `=` is dropped behind: x, x_{1}, f(3), \angle ABC, (x, y)
NAME = (
    r"(?:(?:\\[a-zA-Z]+\s*)?[a-zA-Z]+(?:_\{\w+\})?'?(?:\([^()=,<>]*\))?"
    r"|\((?:[a-z],\s*)+[a-z]\))"
)

TIDY = steps(
    (r"\\!", ""),  # 11,\!222 -> 11,222
    (r"\{,\}", ","),  # 1{,}000 -> 1,000
    (r"(?<=\d)\\[,:; ](?=\d{3}(?!\d))", ""),  # 11\,222 -> 11222
    (r"(?<!\\)\\(?:[,:; ]|q?quad(?![a-z]))|~", " "),  # 24\;cm -> 24 cm; a row's end \\ stays
    (FONT, r" \1 "),  # 15\text{ cm} -> 15  cm
    (FONT, r" \1 "),  # \textbf{\text{B}} -> B
    (r"\\(?:left|right|displaystyle)(?![a-zA-Z])", ""),  # \left(2,5\right] -> (2,5]
    (r"(?<!\\)\\[()\[\]]", ""),  # \(24\) -> 24
    (r"\b[A-Z]{2}\s?(?=\\?\$\s?\d)|\bRs\.?(?=\s?\d)", ""),  # HK$24 -> $24
    (r"\\?[$%]", ""),  # \$24 -> 24, 50\% -> 50
    (r"\.{3}|…|\\ldots(?![a-z])", r"\\dots "),  # 0.333... -> 0.333\dots, which is not 0.333
    (r"^[\s*_\"'`]+|[\s*_\"`.,;:]+$", ""),  # **24**. -> 24
    (r"\^\s?\{?\s?\\circ\s?\}?|°", ""),  # 90^\circ -> 90
    (r"(?<![\w)])\*\*|\*\*(?![\w(])|`", ""),  # **24** apples -> 24 apples, but 9**9
    (r"\\(?:times|cdot)(?![a-zA-Z])", "*"),  # 3\times4 -> 3*4
    (r"\\div(?![a-zA-Z])", "/"),  # 6\div4 -> 6/4
    (r"\\(?:geq?|geqslant)(?![a-zA-Z])", ">="),  # x\ge5 -> x>=5
    (r"\\(?:leq?|leqslant)(?![a-zA-Z])", "<="),  # x\le5 -> x<=5
    (r"\\neq?(?![a-zA-Z])", "!="),  # x\ne5 -> x!=5
    (r"\\approx(?![a-zA-Z])", "="),  # x\approx5 -> x=5
    (r"√\s*(\d+)", r"\\sqrt{\1}"),  # √13 -> \sqrt{13}
    (r"√", r"\\sqrt "),  # √x -> \sqrt x
    (r"(?<![\\a-zA-Z])(sqrt|log|ln|sin|cos|tan|pi)(?![a-zA-Z])", r"\\\1"),  # sin x -> \sin x
    (r"\s*\{\s*", "{"),  # \frac { 1} -> \frac{1}
    (r"\s+\}", "}"),  # {1 } -> {1}
    (r"\\(?:[dtc]|nice|s)frac(?![a-zA-Z])", r"\\frac"),  # \dfrac12 -> \frac12
    (rf"\\sqrt\s*{ARGUMENT}", r"\\sqrt{\1}"),  # \sqrt2 -> \sqrt{2}
    (rf"\\frac\s*{ARGUMENT}", r"\\frac{\1}"),  # \frac12 -> \frac{1}2
    (rf"(\\frac\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*{ARGUMENT}", r"\1{\2}"),  # \frac{1}2
    (r"(?<![\^_])\\frac\{([-+]?[\d.,]+)\}\{([-+]?[\d.,]+)\}", r" \1/\2"),  # 3\frac{1}{2} -> 3 1/2
    (r"([\^_])\s*(-?\d+|[a-zA-Z]|\\[a-zA-Z]+)", r"\1{\2}"),  # x^10 -> x^{10}
    (r"(?<![\w^}\]\\])\{([^{}]*)\}", r"\1"),  # -{5} -> -5: these braces hold no argument
    (r"(?<=\d)\s*[*x]\s*10\^\{([-+]?\d{1,2})\}", r"e\1"),  # 3*10^{5} -> 3e5
    (r"(?<![\w.)}*])10\^\{([-+]?\d{1,2})\}", r"1e\1"),  # 10^{5} -> 1e5
    (r"(?<![/\d.,])(\d[\d,.]*)\s*hundred(?![a-z])", r"\1e2"),  # 5 hundred -> 5e2
    (r"(?<![/\d.,])(\d[\d,.]*)\s*thousand(?![a-z])", r"\1e3"),  # 5 thousand -> 5e3
    (r"(?<![/\d.,])(\d[\d,.]*)\s*million(?![a-z])", r"\1e6"),  # 2 million -> 2e6
    (r"(?<![/\d.,])(\d[\d,.]*)\s*billion(?![a-z])", r"\1e9"),  # 1.5 billion -> 1.5e9
    (r"(?<![/\d.,])(\d[\d,.]*)\s*万", r"\1e4"),  # 3万 -> 3e4
    (r"\b(?:minus|negative)\s+(?=[\d.])", "-"),  # minus 5 -> -5
    # [24] -> 24, (-5) -> -5, \{24\} -> 24: brackets around one number, not those of f(3)
    (
        r"(?<![\w)\]}^])(?:[(\[]|\\\{){1,2}\s*([-+]?\s?[\d./ ]{0,99}\d)\s*(?:[)\]]|\\\}){1,2}"
        r"(?![\w(\[{^])",
        r"\1",
    ),
    (r"(?<=\d)\s*\*\s*(?=[a-zA-Z\\(])", ""),  # 2*x -> 2x
    (r"^\s*\\forall[^,]*,", ""),  # \forall x>0, f(x)=0 -> f(x)=0
    (rf"^\s*{NAME}\s*={{1,2}}(?![=<>])(?!.*=)", ""),  # x = 5 -> 5, but x=5, y=3
    (r"^\s+|\s+$", ""),
)

PLAIN_TEXT = steps(
    (r",?\s+and\s+", ","),  # x=3 and y=5 -> x=3,y=5
    (r"\s+(?!\d)|(?<!\d)\s+", ""),  # (1, 2) -> (1,2), but 5 6
    (r"^\(([a-zA-Z])\)$", r"\1"),  # (B) -> B
)


def tidy(text):
    """The text of an answer by the steps of TIDY; case and blanks are as they were."""
    if text.isdecimal():
        return text[:LONGEST]
    return rewrite(text[:LONGEST].translate(CHARACTERS), TIDY)


def plain_text(tidied):
    return rewrite(tidied, PLAIN_TEXT).lower()


# ---------------------------------------------------------------------- third stage: compare them

# 24, 1,200, 24., .5, 1.2e5
DECIMAL = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?"
# The groups: the parts of a mixed number such as 3 1/2; else a number and its divisor.
NUMBER = (
    r"(?:(\d{1,9})\s+(\d{1,9})/(\d{1,9})(?![\d.])"
    rf"|({DECIMAL})(?:\s?/\s?([-+]?{DECIMAL}))?)"
)

# A unit: words, or a letter that is a unit. In 5x or 5n the number is not the answer, and in
# `5 or more` or `5 squared` the word is not a unit.
LETTER = r"[^\W\d_]"
NO_UNIT = (
    r"(?:or|and|to|plus|minus|times|over|divided|mod|modulo|base|squared|cubed|factorial"
    r"|half|halves|hundred|thousand|million|billion|trillion)(?![a-z])|[千百十亿半]"
)
UNIT_WORD = (
    rf"(?<!{LETTER})(?!{NO_UNIT})(?:{LETTER}{{2,}}|[\u4e00-\u9fff]|[mgshlLJWVKCF])(?!{LETTER})"
    r"(?:\s?\^\{-?[123]\})?"  # cm^{2}
)
UNIT = rf"(?:[\s.'\"()/]|{UNIT_WORD}){{0,200}}"
WHOLE = re.compile(rf"([-+]?)\s*{NUMBER}{UNIT}")

# Words that leave open which number is meant, or take it back.
HEDGE = r"not?|nor|or|between|than|least|most|under|over|below|above|up|from|within|minus|negative"

# What may stand around the number in a response, but not in a reference.
AROUND = steps(
    (r"\s*=\s*[a-zA-Z]$", ""),  # 24 = x -> 24
    # a name: x_{1} = 24, f(3) = 24, a+b = 12
    (
        r"^(?!.*\b(?:or|and|no)\b)(?:\s*[a-zA-Z\\](?:[a-zA-Z\\\s+*/'-]|_\{\w+\}|\([^()]*\))*"
        r"=(?![=>]))+",
        "",
    ),
    # a calculation: 12 apples * 2 = 24
    (
        r"^(?!.*\b(?:or|and|no)\b)(?:(?:[\d\s.+*/()^{}-]|,(?=\d{3})|\b[a-zA-Z]{2,}\b)*=(?![=>]))+",
        "",
    ),
    (r"^[A-Za-z ]{2,40}:\s+", ""),  # apples: 24 -> 24
    # a clause: 24, not 30 -> 24; 24 apples, 6 of them red -> 24 apples
    (
        r",\s*(?:(?!or\b|and\b|if\b|then\b|plus\b|minus\b|maybe\b)[a-z]{2,}\b(?!\s*=)|i\.e\."
        r"|\d+\s(?:of|[-+*])\s).*$",
        "",
    ),
    # an explanation: 24 of 30 -> 24, 24 since 4*6=24 -> 24, 24 (of 30) -> 24
    (r"\s(?:(?:of|out of|because|since)\s|\((?!or|mod)).*$", ""),
    # words: that she has 24 -> 24, but `between 5`, `at most 5`
    (rf"^(?!.*\b(?:{HEDGE})\b)(?:[a-z]{{2,}}(?:-(?=[a-z])|\s+))+(?=[-+.\d])", ""),
)

# The last number of free text stands behind a word, a punctuation or an `=`, not in `(0,100)`,
# `10-5` or `x >= 5`; and no word before it may leave open which number is meant.
LAST_NUMBER = re.compile(
    rf"(?:^|(?<![<>!=])=\s*|[a-zA-Z.:;!?\"'],?\s+|[\u4e00-\u9fff]\s*)([-+]?){NUMBER}"
)
OPEN = re.compile(rf"(?:\b(?:{HEDGE}|and)|\d\s+to)\s+$")
# Neither may an operator or a name follow it: 5 + x, 5x, 5 squared.
NOT_LAST = re.compile(
    rf"\s*[-+*/^<>=_:\[{{\\]|\(|\s*(?!and|to)(?:{NO_UNIT})"
    r"|(?!\s[aI]\b)\s*[a-zA-Z](?<![mgshlLJWVKCF])(?![a-zA-Z])"
)
UNIT_POWER = re.compile(r"\^\{[23]\}")  # the power in `15 m^{2}.`

# What no response can reach: a proof, of more than one sentence; JSON's numbers that are none.
PROSE = re.compile(r"[a-z]{3}[.!?]\s+[A-Z]|\n\s*\n|####")
NOT_FINITE = re.compile(r"NaN|[-+]?(?:Infinity|inf)|[-+]?[\d.]+[eE][-+]?\d{3,}")


def to_fraction(match):
    """The value of a match of NUMBER; None where it is divided by zero."""
    sign, whole, top, bottom, decimal, divisor = match.groups()
    if whole:
        decimal = top
        divisor = bottom
    above = Fraction(decimal.replace(",", ""))
    below = Fraction((divisor or "1").replace(",", ""))
    if below == 0:
        return None
    value = int(whole or 0) + above / below
    return -value if sign == "-" else value


def number(tidied):
    """The value of a tidied text that is wholly one number with at most a unit, else None."""
    match = WHOLE.fullmatch(tidied)
    return to_fraction(match) if match else None


def value(tidied):
    """The value of a response's answer: names, clauses and words around its number are dropped,
    and it may be said twice (3/4 or 0.75). None where it is no number, or more than one."""
    if tidied.isdecimal():
        return Fraction(int(tidied))
    said = {number(part) for part in rewrite(tidied, AROUND).split(" or ")}
    return said.pop() if len(said) == 1 else None


def last_number(text):
    """The last number of a text that does not mark its answer, as text; "" without one."""
    last_line = ""
    for line in text[-LONGEST:].splitlines():
        if any(map(str.isdecimal, line)):
            last_line = line
    line = tidy(last_line)
    matches = list(LAST_NUMBER.finditer(line))
    if not matches or OPEN.search(line[: matches[-1].start(1)]):
        return ""
    match = matches[-1]
    behind = UNIT_POWER.sub("", line[match.end() :])
    if NOT_LAST.match(behind) or re.search(r"\d", behind):
        return ""
    return line[match.start(1) : match.end()]


# ---------------------------------------------------------------------------- what others may call


def final_answer(response):
    """The tidied answer that the free text of a response ends in; "" where none can be read."""
    response = response[-REACH:].strip()
    answer = marked_answer(response)
    if answer is not None:
        return tidy(answer)
    choice = CHOICE.fullmatch(response)
    return choice[1] if choice else last_number(response)


def answer_key(response):
    """What the answers of responses are compared and counted by: a Fraction, a plain text, or None
    where no answer can be read."""
    answer = final_answer(response)
    found = value(answer)
    return plain_text(answer) or None if found is None else found


@functools.lru_cache(4096)  # The same few references are asked for at every step.
def reference_key(answer):
    """The same of a reference answer. None where no response could reach it: it holds no value, no
    finite number, or is prose without a marked answer."""
    answer = answer[-REACH:].strip()
    text = marked_answer(answer)
    if text is None:
        if len(answer) > LONGEST or PROSE.search(answer):
            return None
        text = answer
    if NOT_FINITE.fullmatch(text):
        return None
    tidied = tidy(text)
    found = number(tidied)
    return plain_text(tidied) or None if found is None else found


def to_number(text):
    """The value of a text that is wholly one number, with at most a unit or a currency, or None."""
    return number(tidy(text))


def is_correct(response, answer):
    """Does the free text of a response end in the reference answer?

    A reference that is a text is compared with the response's text, even where a number could be
    read in that: `a+b=12` reaches both `12` and `a+b=12`.
    """
    expected = reference_key(answer)
    found = final_answer(response)
    if isinstance(expected, Fraction):
        return value(found) == expected
    return expected is not None and plain_text(found) == expected
