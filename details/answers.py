r"""Is the final answer of a response right?

Take `She pays 3.5 dollars: \boxed{\$\frac{7}{2}}.` and the reference `3.50`. First the answer is
found: the last box holds `\$\frac{7}{2}`. Then it is written in one plain form, by tables of steps:
`dollar 7/2`. Last it is read: an exact rational, a set or a plain text, its unit, and the name left
of its `=`. The values must be equal, and neither names nor units contradict each other.

Where the grader cannot tell, as in `5 or 6`, the answer is wrong: to reward a wrong answer is worse
than to miss a right one. Nothing is evaluated, and the work on a text is bounded.
"""

import functools
import re
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

REACH = 10_000  # So many characters at the end of a text are read,
LONGEST = 1000  # so many of an answer.

# ---- first stage: find the answer

# Braces in braces, as in \boxed{\frac{\sqrt{2}}{2}}; \{ is none.
INSIDE = TEXT = r"(?:[^{}\\]|\\[\s\S]){0,999}"
for _ in range(4):
    INSIDE = rf"{TEXT}(?:\{{{INSIDE}\}}{TEXT}){{0,99}}"

# A box: \boxed{24}, \fbox{24}, \boxed 24, or \boxed{24 in a truncated text.
BOX = (
    r"\\(?:[bB]oxed|fbox)\s{0,9}"
    rf"(?:\{{({INSIDE})\}}|\{{([^\n]{{0,999}}\Z)|(-?\d[\d.,]{{0,99}}|[a-zA-Z]))"
)
# Between boxes that are one answer: \boxed{-1} and $x = \boxed{-9}$
BETWEEN = r"(?:[\s$,;/()\\{}]|and|or|else|maybe|text|quad|[a-zA-Z](?:_\w)?\s?=){0,40}"

# The answer behind a mark, up to the end of the line or the sentence.
BEHIND = r"(\S(?:(?![.!?]\s{1,9}(?-i:[A-Z])|</)[^\n。]){0,999})"

# Of the first pattern that matches, the last match holds the answer.
MARKS = (
    rf"({BOX}(?:{BETWEEN}{BOX}){{0,20}})",
    # for programs: <answer>24</answer>, GSM8K's #### 24, with words only on the last line
    r"(?i)(?:<answer>|(?<!#)#{4}(?!#)(?=\s{0,9}(?:[-+$\\.\d]|[^\n]{1,999}\Z))"
    rf"(?!\s{{0,9}}\d{{1,3}}[.):]\s{{1,9}}\S))[\s:：*_]{{0,20}}{BEHIND}",  # no #### 2. Add
    r"(?i)(?:(?:answers?|option|choice)[*_\s]{0,6}(?:(?:is|are)\b|[:：=])"  # the answer is 24
    r"|answer[*_ ]{0,6}\n"  # a heading: ### Final Answer
    r"|(?:答案|故选)[*_\s]{0,6}[是为:：]"  # 答案是24
    r"|\A(?=\(?[a-z][).]{0,2}\Z)"  # a response that is one letter: (B)
    rf")(?:[\s:：*_]|\\[(\[]){{0,20}}(?={BEHIND})",
)
# Else the last sentence with a digit does, if it is a number.
LAST = r"(?m)^(?:.*[.!?]\s+(?=[A-Z].*\d))?(.*\d.*?)!*$"

# A box that only shows how: \boxed{}, \boxed{...}, \boxed{your answer}
PLACEHOLDER = re.compile(r"(?i)\\f?boxed\s?\{(?:\W|your|the|final|answer|here)*")

# Denied before it, or taken back behind it: not \boxed{24}; \boxed{24}? No.
DENIED = re.compile(r"(?:not|n't|never|cannot)(?: be| equal to)?[\s$\\(\[{]{0,9}\Z")
TAKEN_BACK = re.compile(
    r"(?i)[\W_]{0,20}(?:(?:no|hmm|oops|sorry|actually|correction)\b[,.!:]|no\Z|or\b|wait\b"
    r"|(?:(?:(?:that|it|there)(?:['’]s)?|this|which|(?:i|we)(?:['’]ve)?|am|is|was|be|been|has|have|had"
    r"|to|may|might|must|could|should|would|can(?:['’]t|not)|does(?:n['’]t)?|made|seems?|looks?|think"
    r"|thought|sure|the|my|our|answer|result|value|no|so|oh|hmm|and|but|also|however|(?-i:an?)),?"
    r" ){0,7}(?:wrong|incorrect|impossible(?! to\b)|false|mistake|error|apologi[sz]e|seem right"
    r"|(?<!to )be right|(?:not|isn['’]t) (?:a |the )?(?:solution|answer|right|correct|valid"
    r"|possible)))"
)


def find(text, patterns):
    """What the first of the patterns that matches matches last; "" if it is denied; else None."""
    for pattern in patterns:
        marks = [*re.finditer(pattern, text)]
        for mark in reversed(marks):
            if not PLACEHOLDER.fullmatch(mark[1]):
                break
        if marks:
            if DENIED.search(text, 0, mark.start(1)) or TAKEN_BACK.match(text, mark.end(1)):
                return ""
            return re.sub(BOX, r" \1\2\3, ", mark[1])
    return None


# ---- second stage: write it in one form

ARGUMENT = r" *([^ {}\\^_\[]|\\[a-zA-Z]+)"  # an argument without braces: 2, x, \pi
END = r"(?![a-zA-Z])"
# What takes back or leaves open what is said.
NOT = (
    r"(?:(?i:\b(?:n(?:ot?|ever|one|or|either)|cannot|or|either|doubt|unlikely|wrong|incorrect|false"
    r"|impossible|mistake|hardly|instead|rather|except|fails?)\b|n['’]t)|[不没])"
)
# A name left of `=`: x, x_{1}, f(3), \angle ABC, (x, y)
NAME = (
    r"((?:\\[a-zA-Z]+ *)?[a-zA-Z]+(?:_\{\w+\})?'?(?:\([^()=,<>]*\))?|\((?:[a-z]; *)+[a-z]\))"
    r" *(?:={1,2}(?![=<>])|\\in(?![a-z]))(?!.*=)"
)


def steps(table):
    """The lines of a table: a pattern, what replaces it (_ is a blank), an example."""
    table = (
        table.replace("ARGUMENT", ARGUMENT)
        .replace("END", END)
        .replace("NAME", NAME)
        .replace("NOT", NOT)
    )
    rows = re.findall(r"(?m)^(.+?) => *(.*?) *(?:# .*)?$", table)
    return [(re.compile(pattern), template.replace("_", " ")) for pattern, template in rows]


def rewrite(text, table):
    for pattern, template in table:
        text = pattern.sub(template, text)
    return text


# What Unicode's normal form of ２４ and 1½ leaves.
CHARACTERS = steps(r"""
(?=[²³]) => ^
(?=[¼-¾⅐-⅞]) => _ # 2½ -> 2 1/2
[‐-–−] => -
π => \\pi
∞ => \\infty
± => \\pm
√ => \\sqrt
≈|\\simeq => \\approx
≠|\\not ?=|(?<=[a-z ])!= => \\ne
[×·]|\\(?:times|cdot)END => *
÷|\\divEND => /
≤|\\l(?:eq?|eqslant)END => <=
≥|\\g(?:eq?|eqslant)END => >=
∪|(?<=[)\]])\s?U\s?(?=[(\[]) => \\cup
""")

TIDY = steps(r"""
\s+ => _
⁄ => /
[\u200b\ufeff]|\\!|\{(?=,\})|(?<=\{,)\}|(?<=\d)\\[,:; ](?=\d{3}(?!\d)) => # 1{,}000 -> 1,000
(?<!\\)\\[,:; ]|~ => _ # 24\;cm; a row's end \\ stays
\\(?:text|math|bold|emph|underline|operatorname|num|[mf]?box)\w{0,9} ?\{([^{}]*)\} => _\1_
\\(?:(?:left|right|[bB]igg?)[lr]?\.?|\w{4,7}style|large|bf|rm|q?quad|therefore)END =>
&(?==)|\\\\\s*$|</?[a-z_]{1,20}>|(?<!\\)\\[()\[\]] => # x&=24\\, <b>24</b>, \(24\)
(?<!\\)\$([^$]*)(?<!\\)\$ => _\1_
\b[A-Z]{1,2} ?(?=\\?\$ ?\d)|\\(?=[$%]) => # HK\$24 -> $24
(-?) ?\$(?= ?[-.\d]) => _dollar_\1 # -$24 -> dollar -24
(?<=dollar )(-?[\d.,]*\d) ?[kK]\b => \1_thousand # $24K
\bper ?cent\b => %
(?<=\{)bmatrix(?=\}) => pmatrix
\b(?i:option|choice|letter) +(?=\(?[A-H]\b) =>
^[ *_"“'`]+|[ *_"”`.,;:]+$|\$ => # **24**.
\^ ?\{? ?\\circ ?\}?|°|\\degree|`|(?<![\w)])\*\*|\*\*(?![\w(]) => # 90^\circ; **24**, but 9**9
(?<![\\a-zA-Z])(sqrt|log|ln|sin|cos|tan|pi)END => \\\1 # sin x ->  in x
 *(\{) *| +(?=\^) => \1 # \frac { 1}, cm ^2
\bsq(?:uare|\.)? ([a-z]+) => \1^{2} # square feet -> feet^{2}
\bcu(?:bic|\.)? ([a-z]+) => \1^{3}
\{([^{}]*?) *\\over *([^{}]*)\} => \\frac{\1}{\2}
(?<![\w^}\]\\])\{([^{}]*)\} => \1 # -{5} -> -5: these braces hold no argument
\\(?:[dtc]|nice|s)fracEND => \\frac
\\sqrt(\[\d\])?ARGUMENT => \\sqrt\1{\2} #  qrt2 ->  qrt{2}
\\(frac|binom)ARGUMENT => \\\1{\2} # \frac12 -> \frac{1}2
(\\(?:frac|binom)\{(?:[^{}]|\{[^{}]*\})*\})ARGUMENT => \1{\2} # \frac{1}2 -> \frac{1}{2}
(?<![\^_])\\frac\{([-+]?[\d.,]+) *\}\{([-+]?[\d.,]+) *\} => _\1/\2 # 3\frac{1}{2} -> 3 1/2
([\^_]) *(-?\d+|[a-zA-Z]|\\[a-zA-Z]+) => \1{\2} # x^10 -> x^{10}
(?<=\d) *x *(?=\d) => *
(?<=\d) *\* *10\^\{([-+]?\d{1,2})\} => e\1 # 3*10^{5} -> 3e5
(?<![\w.)}*])10\^\{([-+]?\d{1,2})\} => 1e\1 # 10^{5} -> 1e5
(?<![\d.,])(\d{1,3})([ '_.])(\d{3})\2(\d{3})(?!\d) => \1\3\4 # 1 000 000
\b(?:minus|negative) +(?=[\d.]) => - # minus 5
(?<![\w)\]}^])(?:\\?[(\[{]){1,3} *([-+]?[\d./ ]{0,99}\d) *(?:\\?[)\]}]){1,3}(?![\w(\[{^]) => \1
^ *\\forall[^,]*,|(?<=\d) *\* *(?=[a-zA-Z\\(])|\+(?=\\infty) => # 2*x
[;、] => ,
,(?=[^()\[\]]{0,99}[)\]]) => ; # (1,200) -> (1;200), which is no number
^(.*\d.*)\\approx.* => \1 # \frac13\approx0.33
\\approx => =
^ +| +$ =>
""")

# Inequalities become intervals; blanks and units go.
PLAIN = steps(r"""
 +(?:[ckm]m|units?|rad|inches|feet|\w{0,5}met(?:er|re)s?)(?:\^\{[23]\})?$ =>
 +(?!\d)|(?<!\d) +|^\+ => # (1, 2) -> (1,2), but 5 6
^\(?([^(),;\[\]]*)\)$ => \1
^([^<>]+)>(=?)([^<>]+)$ => \3<\2\1 # x>3 -> 3<x
^(?=[a-z]<) => -\\infty< # x<3 -> -\infty<x<3
(?<=<)(=?)([a-z])$ => \1\2<\\infty # 3<x -> 3<x<\infty
^([^<>]+)<=[a-z]< => [\1;< # 2<=x<3 -> [2;<3
^([^<>]+)<[a-z]< => (\1;<
;<=([^<>]+)$ => ;\1] # [2;<=3 -> [2;3]
;<([^<>]+)$ => ;\1)
""")

# What may stand around an answer in a response only.
AROUND = steps(r"""
^.*= ?-?\d+[^\w=]+(?:[a-z]+ )?[a-z] ?=.* => # x = 1 if y = 2
^.*(?:\b(?:no|wait|actually|where \w =)|, (?:which|it) is),? +(?=[-+.$\d\\]) => # 24, no, 25
^(?!.*NOT)[A-Z][a-z]*,? (?:.*[\d)%]|[^=]*[a-z]{2}(?: [a-zA-Z])?) *= *(?=[-.\d]|dollar) =>
 *= *[a-zA-Z]$ =>
^(?!NAME|[-+] *[a-z]|.*(?:\d *[a-z]\b|\b[a-z] *[/^]|[,;]\D|[<>]|\b(?:or|and)\b).*=).*=(?![=<>]) =>
# a+b = 12, but not 2x = 12
(?:,| \() ?\d+ ?(?:of\b.*|(?:[-+*]|plus|times) ?\d+\)?$) => # 24 (30 minus 6)
[,( ]+(?:(?:and )?not (?:-?\d|[A-Z]\b)[\w.]*|(?:because|since|out of|i\.e\.) .*) =>
(\d.*?)[,( ]{1,3}of .* => \1 # 24 of 30
""")

# Words and choices are compared in lower case, symbols are not: mgh.
WORD = r"(?i)(?<![a-z\\])(?=\w{0,99}[aeiouy])[a-z]{3,99}(?![a-z])|\bno\b|^[a-h]$"


def tidy(text):
    """The text of an answer in plain form; case and blanks are as they were."""
    text = unicodedata.normalize("NFKC", rewrite(text[:LONGEST], CHARACTERS))
    return rewrite(text[:LONGEST], TIDY + TIDY)  # \textbf{\text{B}}


# ---- third stage: read it

# 24, 1,200, 24., .5, 1.2e5
DECIMAL = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?"

# Words that scale a number.
SCALES = dict(
    re.findall(
        r"(\w+)=(\S+)",
        "hundred=1e2 thousand=1e3 千=1e3 万=1e4 萬=1e4 lakh=1e5 million=1e6 M=1e6 crore=1e7 亿=1e8"
        " 億=1e8 billion=1e9 bn=1e9 trillion=1e12 dozen=12 thirds=1/3 fifths=1/5 eighths=1/8"
        " tenths=1/10 hundredths=1/100",
    )
)

# A currency, a sign, the whole of 3 1/2, a number, a divisor that is not 0, a scale, a unit.
NUMBER = re.compile(
    r"(?:(dollar|[£¢¥฿₠-₿]) ?)?(?:((?<!\|)[-+]) ?)?"  # no sign in |-3|
    rf"(?:(\d{{1,9}}) (?=\d{{1,9}}/\d))?({DECIMAL})"
    rf"(?: ?/ ?(?![-+]?[0.]+(?![\d.]))((?a:[-+]?{DECIMAL})))?"  # another script has another 0
    rf"(?: ?({'|'.join(SCALES)})s?{END})?"
    rf"(?!(?![ckmap]m|[km]g|m[lL]|th|st|nd|rd|ft|kr)[a-zA-Z]{{2}}{END})"  # not 2ab
    r"[ .'\"(]{0,9}(%|[£¢¥฿₠-₿]|[^\W\d_]*(?:\^\{\d)?)"
)

# What may not stand around a number: words that deny, limit or scale it, digits, operators.
BAD = re.compile(
    rf"{NOT}|\b(?:most|least|(?:min|max)imum|(?:more|less|fewer) than|plus|minus|squared|cubed"
    r"|factorial|mod|base|mil|mln|mrd|doubled|tripled|halved|(?:and|by) (?:an?|one|two|three|four"
    r"|five|six|seven|eight|nine|ten|\w+ty))\b|\bhal(?:f|ves)|ill(?:i?on|iard)|\b(?!months|paths)[a-z]+ths\b|тыс"
    r"|мл[нр]|[百十半兆천만억]|\d(?<!\^\{[123])(?<!\^\{-[123])|[+<>=_\\\[]|!(?!\s)|-(?!\w)|[*/](?![^\W\d_])"
    rf"|(?<![a-zA-Z])\^|(?<![a-zA-Z'])(?![aI] |[mgshlLJWVKCFNA]{END})[a-zA-Zα-ω]{END}"
)
# Nor right before it: a limit, a factor; a name, as in July 4; the brace of an exponent.
LIMIT = re.compile(
    r"(?i:\b(?:up to|under|over|below|above|near|almost|than|but|from|twice|double|times"
    r"|(?:half|third|quarter) of|(?:much|many) as)\s+$)|[A-Z][a-z]{2,}\.?\s+$|[a-zA-Z—]$|\^\{$"
)

# B) 24, but not A) or B), nor A) 24, B) 36.
CHOICE = re.compile(
    r"\(?([A-H])(?:\)(?=\w)|[).:]+\s)(?!\W*(?:or|and)?\W*[A-H]\b\W*\Z|.*\b[A-H][).:])\s*"
)

# Between the values of a list; a comma in brackets is a semicolon by now.
SEPARATOR = re.compile(r",(?!\d{3}(?!\d))|\b(?:and|or)\b|\\cup|\\[{}]|\\[lr]brace")

# What no response can reach: no finite number, a proof, more than one sentence.
UNREACHABLE = re.compile(
    r"\A(?:NaN|[-+]?(?:Infinity|inf)|[-+]?[\d.]+[eE][-+]?\d{3,}|proof|notfound)\Z"
    r"|[a-z]{3}[.!?]\s+[A-Z]|\n\s*\n|####|[\s\S]{1001}"
)


class Answer(NamedTuple):
    """A value with what stands around it: `x = 5 cm` is Answer("x", 5, "cm")."""

    name: str
    value: object  # None where nothing can be read
    unit: str = ""
    noise: Fraction = 0  # of floating point


def number(tidied):
    """The value, the unit and the noise of a text that is one number among words, else None."""
    match = NUMBER.search(tidied)
    if not match:
        return None
    lead = tidied[: match.start()]
    if LIMIT.search(lead) or BAD.search(f"{lead} {tidied[match.start(7) :]}"):
        return None
    money, sign, whole, top, below, scale, unit = match.groups("")
    value = Fraction(top.replace(",", "")) / Fraction((below or "1").replace(",", ""))
    value = (value + int(whole or 0)) * Fraction(sign + "1") * Fraction(SCALES.get(scale, 1))
    noise = abs(value) / 10**6 if re.search(r"\.\d{7}", top) else 0
    return value, (money or unit).lower(), noise


def read(text):
    """The Answer that a tidied text holds."""
    name = ""
    if named := re.match(NAME, text):
        name = named[1].replace(" ", "")
        text = text[named.end() :].strip()
    if choice := CHOICE.match(text):
        name = f"({choice[1].lower()})"
        text = text[choice.end() :]
    if found := number(text):
        return Answer(name, *found)
    if r"\pm" in text:
        text = text.replace(r"\pm", "+") + " or " + text.replace(r"\pm", "-")
    parts = [part.strip() for part in SEPARATOR.split(text) if part.strip()]
    if len(parts) > 1:
        items = [read(part) for part in parts]
        if len({item.name.split("_")[0] for item in items} - {""}) == 1:  # x_1 = 5, x_2 = 6
            items = [item._replace(name="") for item in items]
        times = Counter(items)
        if len(times) > 1:
            return Answer(name, frozenset(times.items()))
        return items[0]._replace(name=name)
    plain = re.sub(WORD, lambda word: word[0].lower(), rewrite(text, PLAIN))
    return Answer(name, plain or None)


SYMBOLS = {"m", "mi", "min", "ml", "mm", "mg"}  # of units: none abbreviates another


def akin(a, b):
    """Could two names or units be the same? Of hrs and hours one abbreviates the other."""
    a, b = sorted((a, b), key=len)
    if {a, b} <= SYMBOLS:
        return a == b
    if not a:
        return True
    return a[0] == b[0] and Counter(a) <= Counter(b) and a[-1].isdigit() == b[-1].isdigit()


def same(found, expected):
    """Does an Answer say what the reference's says?"""
    if f"({found.value})" == expected.name or f"({expected.value})" == found.name:
        return True  # C for (C) 24
    if not akin(found.name, expected.name) or not akin(found.unit, expected.unit):
        return False
    if {type(found.value), type(expected.value)} != {Fraction}:
        return found.value == expected.value
    percent = Fraction(100) ** ((found.unit == "%") - (expected.unit == "%"))
    away = (abs(found.value - expected.value * factor) for factor in (1, percent))
    return min(away) <= expected.noise


# ---- what others may call


def final_answer(response):
    """The tidied answer of a response, or ""."""
    response = response[-REACH:].strip()
    answer = find(response, MARKS)
    if answer is not None:
        return tidy(answer)
    last = tidy(find(response[-LONGEST:], [LAST]) or "")
    return last if type(read(rewrite(last, AROUND)).value) is Fraction else ""


def answer_key(response):
    """What answers are counted by: a Fraction, a frozenset, a text; None where none is read."""
    return read(rewrite(final_answer(response), AROUND)).value


@functools.lru_cache(4096)  # The same few at each step.
def reference(answer):
    """The Answer of a reference; its value is None where no response can reach it."""
    answer = answer[-REACH:].strip()
    text = find(answer, MARKS)
    if text is None:
        text = answer
    return read("" if UNREACHABLE.search(text) else tidy(text))


@functools.lru_cache(4096)
def is_correct(response, answer):
    """Does a response end in the reference answer? It is read as it stands, without what is around
    it, and as a list: `5,100` as `5, 100`."""
    expected = reference(answer)
    found = final_answer(response)
    readings = (found, rewrite(found, AROUND), re.sub(",(?!0)", ", ", found))
    return expected.value is not None and any(same(read(text), expected) for text in readings)
