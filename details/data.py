"""What programs read and write: JSONL files of problems and pairs; and how they are dealt out.

A line of a data file is one JSON object, as `{"question": "What is 6 * 7?", "answer": "42"}` or
`{"question": "Write twice(n), which returns 2 n.", "tests": ["assert twice(4) == 8"]}`. What cannot
be used is an `InputError` that names the file and the line.
"""

import gzip
import http.client
import json
import os
import random
import re
import sys
import unicodedata
import urllib.request
import zlib
from pathlib import Path

from details.memory import ran_out  # isort: skip (before torch)

import torch

from details.answers import is_correct, reference
from details.errors import InputError, Unreachable, one_line
from details.grader import GRADER
from details.programs import setup_error, take_apart
from reward import Pair, Problem


def run_command(program, *args):
    """What a program of the command line returns; what the user got wrong ends it with one line."""
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        # A terminal that cannot show a character shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        return program(*args)
    except BrokenPipeError:  # `sample.py ... | head`: nobody reads on
        lose_output()
        sys.exit(141)
    except (InputError, OSError, RuntimeError, MemoryError) as error:
        what = "out of memory: " if ran_out(error) else ""
        if type(error) is RuntimeError and not what:
            raise
        sys.exit(f"error: {what}{one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def lose_output():
    """What is printed from here on goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


# ----------------------------------------------------------------------------------- JSONL files


def read_jsonl(path, check):
    """[check(object)] for the lines of a JSONL file; blank lines are passed over.

    `check` raises ValueError on an object that it cannot use, of which Unreachable leaves the line
    out. Raises InputError with file and line number, OSError where there is no such file.
    """
    content = Path(path).read_bytes()
    if other := OTHER_FORMAT.match(content):
        raise InputError(
            f"{path}:1: one JSON object a line in UTF-8 is expected; "
            f"this is {other.lastgroup}: unpack or convert it"
        )
    rows = []
    left_out = 0
    # Bytes are split and not text: only \n, \r\n and \r end a line then.
    for number, line in enumerate(content.splitlines(), 1):
        try:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
                rows.append(check(row))
        except Unreachable:
            left_out += 1
        except (ValueError, RecursionError, SyntaxError, MemoryError) as error:
            raise InputError(
                f"{path}:{number}: {ADVICE.get(type(error), '')}{one_line(error)}"
            ) from error
    if left_out:
        print(f"{path}: {left_out} lines left out: no response to them can be judged right")
    if not rows:
        raise InputError(f"{path}: the file is empty, or no line is left")
    return rows


def read_some(path, check=dict):
    """The rows of a file; none where there is none, or nothing in it yet."""
    if not path.exists() or not path.stat().st_size:
        return []
    return read_jsonl(path, check)


# What a file begins with that holds something else.
OTHER_FORMAT = re.compile(
    rb"\s*(?:(?P<gzip>\x1f\x8b)|(?P<bzip2>BZh)|(?P<xz>\xfd7zXZ)|(?P<zstd>\x28\xb5\x2f\xfd)"
    rb"|(?P<zip>PK\x03\x04)|(?P<Parquet>PAR1)|(?P<array>\[)"
    rb"|(?P<UTF16>\xff\xfe|\xfe\xff|\{\x00|\x00\{))"
)
ADVICE = {
    SyntaxError: "a test is not Python: ",
    json.JSONDecodeError: "one JSON object a line is expected, and this is not: ",
    UnicodeDecodeError: "text in GBK or Latin-1, perhaps: convert it by iconv -f GBK -t UTF-8; ",
}


def write_jsonl(path, rows, mode="w"):
    """A JSON object a line; mode "a" adds the rows behind those that are there."""
    with open(path, mode, encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def text_field(row, name, by_a_person=True):
    """A field of a JSON object that must hold text; of a model it may be any text."""
    if name not in row:
        raise ValueError(f"no field {name!r}; there are: {', '.join(row)}")
    value = row[name]
    if not isinstance(value, str) or (by_a_person and not value.strip()):
        raise ValueError(f"field {name!r} must be a text that is not empty")
    value.encode()  # half of a surrogate pair is no text: a ValueError
    # In JSON "\frac" is a form feed and "rac".
    if by_a_person and re.search(r"[\x00-\x08\v\f\x0e-\x1f]", value):
        raise ValueError(f"field {name!r} has a control character: double the backslash of LaTeX")
    return value


def kind_of(row):
    """What a JSON object's question asks for, as `program` of `critique.solve_prompt`."""
    if GRADER:
        return None
    return "tests" in row or "test_list" in row or "entry_point" in row


def to_problem(row):
    """A JSON object's problem. It is judged by the user's grader, if there is one; else by tests,
    if it has any; else by its answer, which may be a number, and which some response must reach."""
    program = kind_of(row)
    names = "question", "problem", "text", "prompt"
    question = text_field(row, next((name for name in names if name in row), "question"))
    line = json.dumps(row)
    if program is None:
        return Problem(question, program=None, row=line)
    if program:
        return to_program(row, question, line)
    answer = row.get("answer")
    if type(answer) in (int, float):
        row = {"answer": json.dumps(answer)}
    answer = text_field(row, "answer")
    unread = NO_ANSWER.search(answer) and not is_correct(answer, answer)
    if unread or reference(answer).value is None:
        raise Unreachable(f"field 'answer': no response can reach {answer[:60]!r}")
    return Problem(question, answer, row=line)


# What stands in NuminaMath where there is no answer; and sentences, which do not come twice in the
# same words: one that says its answer behind a colon, as in `A: 5`, or has eight words in a row.
# One that marks its answer, by `####` or a box, is understood.
NO_ANSWER = re.compile(r"(?i)^\W*(?:proof|not ?found)\W*$|[a-z]:\s(?!.*:)|\b(?:[a-z]+\s+){7}[a-z]")


def to_program(row, question, line):
    """A problem that asks for a program. Its tests stand in `tests`, in MBPP's `test_list`, or in
    HumanEval's `test`."""
    sources = listed(row.get("tests", row.get("test_list", row.get("test"))))
    imports = listed(row.get("test_imports") or [])
    setup = [*imports, row.get("test_setup_code", ""), row.get("setup", "")]
    entry_point = row.get("entry_point") or "candidate"
    if not all(isinstance(source, str) for source in [*sources, *setup, entry_point]):
        raise ValueError("tests, their setup and entry_point must be texts")
    calls = take_apart(sources, entry_point)
    setup = "\n".join(setup).strip()
    if failure := setup and setup_error(setup):
        raise ValueError(f"the setup fails: {failure}")
    return Problem(with_tests(question, row), program=True, tests=calls, setup=setup, row=line)


def with_tests(question, row):
    """MBPP's questions show their tests, as is usual."""
    if "test_list" in row:
        question += "\nIt must pass these tests:"
        for test in listed(row["test_list"]):
            question += f"\n{test}"
    return question


def listed(value):
    return value if isinstance(value, list) else [value]


def from_problem(problem):
    """The JSON object again."""
    return json.loads(problem.row)


def to_pair(row):
    """A JSON object's pair: question, answer, response, label (true: right)."""
    response = text_field(row, "response", by_a_person=False)
    label = row.get("label")
    if not isinstance(label, bool):
        raise ValueError("field 'label' must be true or false")
    return Pair(to_problem(row), response, label)


def from_pair(pair):
    return from_problem(pair.problem) | {"response": pair.response, "label": pair.right}


# ------------------------------------------------------------------------------ sets of problems

GITHUB = "https://raw.githubusercontent.com/"
GSM8K = "openai/grade-school-math/master/grade_school_math/data/"
MBPP = "google-research/google-research/master/mbpp/mbpp.jsonl"
SETS = {  # {name: {split: where it is}}
    "gsm8k": {"train": GSM8K + "train.jsonl", "test": GSM8K + "test.jsonl"},
    "mbpp": {"train": MBPP, "test": MBPP},
    "humaneval": {"test": "openai/human-eval/master/data/HumanEval.jsonl.gz"},
}
# MBPP is one file: the tasks of each split, as published.
MBPP_TASKS = {"train": range(601, 975), "test": range(11, 511)}


def load_problems(name, split="train"):
    """Problems from a JSONL file, or from one of SETS, which is downloaded once to torch's hub
    folder."""
    if name not in SETS:
        return read_jsonl(name, to_problem)
    source = SETS[name].get(split)
    if not source:
        raise InputError(f"{name}: it has no {split} set: it is for --eval-data")
    path = Path(torch.hub.get_dir()) / name / Path(source).name.removesuffix(".gz")
    if not path.exists():
        download(name, GITHUB + source, path)
    problems = read_jsonl(path, to_problem)
    if name == "mbpp":
        tasks = MBPP_TASKS[split]
        problems = [p for p in problems if from_problem(p)["task_id"] in tasks]
    return problems


def download(name, url, path):
    """Fetch a file; one that is compressed is unpacked. It stands there whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")  # other runs may fetch it, too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(url, partial)  # an OSError where the file is cut short
        if url.endswith(".gz"):
            partial.write_bytes(gzip.decompress(partial.read_bytes()))
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{name}: cannot download {url} ({error}); fetch it by hand and name the file instead"
        ) from error


def load_split(data, eval_data=None):
    """(training problems, held-out problems); no question is in both, and none is held out twice.

    Without `eval_data`: gsm8k and mbpp have a test set, of other files the last tenth of the
    different questions is held out.
    """
    problems = load_problems(data)
    if eval_data or data in SETS:
        held_out = different(load_problems(eval_data or data, "test"))
    else:
        held_out = different(problems)
        held_out = held_out[-max(1, len(held_out) // 10) :]
    return without(held_out, f"--data {data}", problems), held_out


def different(problems):
    """The problems without copies: of each question the first."""
    first = {}
    for problem in problems:
        first.setdefault(question_key(problem.question), problem)
    return list(first.values())


def without(problems, source, items, question_of=lambda problem: problem.question):
    """The items, read from `source`, whose question is none of the problems'; one line says how
    many are left out. Raises InputError if all of them are."""
    keys = {question_key(problem.question) for problem in problems}
    kept = [item for item in items if question_key(question_of(item)) not in keys]
    reason = "the run needs their questions for something else"
    if not kept:
        raise InputError(f"{source}: no line is left: {reason}")
    if len(kept) < len(items):
        print(f"{source}: {len(items) - len(kept)} lines left out: {reason}")
    return kept


def question_key(question):
    """What questions are compared by: of `Sara 's 2 cats .` and `sara's 2 cats.` no policy should
    learn one and be asked the other. Operators, signs and punctuation count."""
    return "".join(unicodedata.normalize("NFKC", question).casefold().split())


# ------------------------------------------------------------------------------- seeds and batches


def seed_of(*parts):
    """A seed that depends on all parts: run, step, what is sampled. It needs no state, so that a
    resumed run goes on alike."""
    return zlib.crc32(repr(parts).encode())


def batch_of(items, step, seed, count):
    """The items of a step: pass after pass over all of them, each in an order of its own."""
    begin = (step - 1) * count
    size = len(items)
    dealt = []  # from the pass in which the step begins on
    for epoch in range(begin // size, step * count // size + 1):
        rng = random.Random(seed_of(seed, "epoch", epoch))
        dealt += rng.sample(items, size)
    return dealt[begin % size :][:count]
