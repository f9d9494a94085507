"""What programs read and write: JSONL files of problems and pairs; and how they are dealt out.

A line of a data file is one JSON object, as `{"question": "What is 6 * 7?", "answer": "42"}`. What
cannot be used is an `InputError` that names the file and the line.
"""

import http.client
import json
import math
import os
import random
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import torch

from details.answers import reference_key
from reward import Pair, Problem


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong, where."""


def run_command(program, *args):
    """What a program of the command line returns; what the user got wrong ends it with one line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return program(*args)
    except BrokenPipeError:  # `sample.py ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (InputError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def one_line(error):
    """An exception's message on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


# ----------------------------------------------------------------------------------- JSONL files


def read_jsonl(path, check):
    """[check(object)] for the lines of a JSONL file; blank lines are passed over.

    `check` raises ValueError or KeyError on an object that it cannot use. Raises InputError with
    file and line number, OSError where there is no such file.
    """
    rows = []
    content = Path(path).read_bytes()
    for mark, kind in NOT_JSONL.items():
        if content.lstrip().startswith(mark):
            raise InputError(f"{path}:1: one JSON object a line is expected, and this is {kind}")
    # Bytes are split and not text: only \n, \r\n and \r end a line then.
    for number, line in enumerate(content.splitlines(), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                rows.append(check(json.loads(text, parse_constant=no_number)))
        except json.JSONDecodeError as error:
            reason = f"one JSON object a line is expected, and this is not: {error}"
            raise InputError(f"{path}:{number}: {reason}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not rows:
        raise InputError(f"{path}: the file is empty")
    return rows


NOT_JSONL = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"[": "a JSON array",
}


def no_number(name):
    """NaN and Infinity are not in JSON, though Python reads them."""
    raise ValueError(f"{name} is no number")


def write_jsonl(path, rows, mode="w"):
    """A JSON object a line; mode "a" adds the rows behind those that are there."""
    with open(path, mode, encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def text_field(row, name, by_a_person=True):
    """A field of a JSON object that must hold text; of a model it may be any text."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    if name not in row:
        raise ValueError(f"no field {name!r}; there are: {', '.join(row)}")
    value = row[name]
    if not isinstance(value, str) or (by_a_person and not value.strip()):
        raise ValueError(f"field {name!r} must be a text that is not empty")
    value.encode()  # half of a surrogate pair is no text: a ValueError
    # In JSON "\frac" is a form feed and "rac".
    control = [c for c in value if c < " " and c not in "\t\n\r"]
    if control and by_a_person:
        raise ValueError(f"field {name!r} has a control character: double the backslash of LaTeX")
    return value


def to_problem(row):
    """A JSON object's problem. The answer may be a number; some value must be readable in it."""
    name = "question"
    if isinstance(row, dict) and "question" not in row and "problem" in row:
        name = "problem"
    question = text_field(row, name)
    answer = row.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        if not math.isfinite(answer):
            raise ValueError("field 'answer': a number that is not finite")
        row = {"answer": str(answer)}
    answer = text_field(row, "answer")
    if reference_key(answer) is None:
        raise ValueError(f"field 'answer': no value can be read from {answer[:60]!r}")
    return Problem(question, answer)


from_problem = asdict  # the JSON object again


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

GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"


def load_problems(name, split="train"):
    """Problems from a JSONL file with `question` and `answer` on every line, or from `gsm8k`,
    which is downloaded once (5 MB) to torch's hub folder."""
    if name != "gsm8k":
        return read_jsonl(name, to_problem)
    path = Path(torch.hub.get_dir()) / "gsm8k" / f"{split}.jsonl"
    url = f"{GSM8K}{split}.jsonl"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, http.client.HTTPException) as error:
            remedy = "fetch the file by hand and name it in place of gsm8k"
            raise InputError(f"gsm8k: cannot download {url} ({error}); {remedy}") from error
    return read_jsonl(path, to_problem)


def load_split(data, eval_data=None, size=None):
    """(training problems, at most `size` held-out problems); no question is in both, and none is
    held out twice.

    Without `eval_data`: gsm8k has a test file, of other files the last tenth of the different
    questions is held out.
    """
    train = load_problems(data)
    if eval_data or data == "gsm8k":
        held_out = different(load_problems(eval_data or data, "test"))[:size]
    else:
        held_out = different(train)
        held_out = held_out[-max(1, len(held_out) // 10) :]
    questions = {problem.question for problem in held_out}
    train = [problem for problem in train if problem.question not in questions]
    if not train:
        raise InputError(f"--data {data}: no problem is left to train on without the held-out ones")
    return train, held_out[:size]


def different(problems):
    """The problems without copies: of each question the first."""
    first = {}
    for problem in problems:
        first.setdefault(problem.question, problem)
    return list(first.values())


# ------------------------------------------------------------------------------- seeds and batches


def seed_of(*parts):
    """A seed that depends on all parts: run, step, what is sampled. It needs no state, so that a
    resumed run goes on alike."""
    return zlib.crc32(repr(parts).encode())


def batch_of(items, step, seed, count):
    """The items of a step: pass after pass over all of them, each in an order of its own."""
    orders = {}
    batch = []
    for index in range((step - 1) * count, step * count):
        epoch, index = divmod(index, len(items))
        if epoch not in orders:
            rng = random.Random(seed_of(seed, "epoch", epoch))
            orders[epoch] = rng.sample(items, len(items))
        batch.append(orders[epoch][index])
    return batch
