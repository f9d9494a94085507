"""A run on one page: what was said, by whom, and what it earned.

    python -m figures.page RUN              writes RUN/run.html, of an older run what it has
    python -m figures.page RUN --picture    and figures/page.png, by Chromium

The page is one file that any browser opens from a folder. train.py writes it at each evaluation.
Model text is hostile: it stands in the page as data, in JSON without `<`, and page.js shows it as
text; nothing but page.js and page.css, known by their hashes, may run or load.
"""

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from details.data import read_some, run_command
from details.errors import InputError, one_line

FOLDER = Path(__file__).parent
LONGEST = 20_000  # characters of a text that are shown
LARGEST = 6_000_000  # bytes of samples.jsonl that are shown
STEP = re.compile(rb'\{"step": (\d+)')  # so a row begins, but for those of probes
COPIED = """step probe id parent role right says_right stopped clipped
response_right wrong_line no_line sound again"""
UNUSABLE = ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
WINDOWLESS = "--headless --disable-gpu --no-first-run --hide-scrollbars --window-size=1200,820"
BROWSERS = "chromium", "google-chrome"


def write_page(out):
    """Writes OUT/run.html, whole or not at all; returns its path."""
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name in ("css", "js"):
        text = (FOLDER / f"page.{name}").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"{{{name} hash}}", digest).replace(f"{{{name}}}", text)
    # ASCII: half of a surrogate pair is spelled out too.
    data = json.dumps(data_of(Path(out)), separators=(",", ":"), allow_nan=False)
    page = page.replace("{data}", data.replace("<", "\\u003c"))
    partial = Path(out) / "run.html.partial"
    partial.write_text(page, encoding="utf-8", newline="\n")
    return partial.replace(partial.with_suffix(""))


def data_of(out):
    """What page.js shows, from the files of the folder."""
    flags = (read_some(out / "run.json") or [{}])[0]
    rows = read_some(out / "metrics.jsonl", with_step)
    if not rows:
        raise InputError(f"{out}: there is no run in it, or no step yet: no metrics.jsonl")
    names = sorted(set().union(*rows))
    data = {
        "flags": {name: str(value) for name, value in flags.items()},
        "metrics": {name: [number(row.get(name)) for row in rows] for name in names},
        "outcomes": {},  # {step: [[question, outcomes of its responses], ...]}
        "steps": {},  # {step: its samples}
        "probes": {},  # the same
    }
    texts = {}  # {text: its number}: most come many times

    for row in samples_of(out / "samples.jsonl", texts, rows[-1]["step"]):
        step = row.pop("step")
        if row["role"] == "outcomes":
            data["outcomes"][step] = row["questions"]
        else:
            data["probes" if row.get("probe") else "steps"].setdefault(step, []).append(row)
    data["texts"] = list(texts)
    data["answers"] = {}
    for name in ("train.jsonl", "held_out.jsonl"):
        for row in read_some(out / name):
            question = str(row.get("question", row.get("problem")))
            if question in texts:
                data["answers"][question] = str(row.get("answer", ""))
    return data


def samples_of(path, texts, last):
    """The rows of samples.jsonl; of a long run every second, third, ... step's, and the last's."""
    content = path.read_bytes() if path.exists() else b""
    stride = 1 + len(content) // LARGEST
    # Of a run that was killed while it wrote, the last line may be a part of one.
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        step = STEP.match(line)
        if step and (last - int(step[1])) % stride:
            continue
        try:
            yield packed(with_step(json.loads(line)), texts)
        except UNUSABLE as error:
            raise InputError(f"{path}:{number}: no row of a run: {one_line(error)}") from error


def with_step(row):
    if type(row.get("step")) is not int:
        raise ValueError("a row with a step is expected")
    return row


def number(value):
    """A metric in six digits; None for what is no number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def packed(row, texts):
    """A row as page.js reads it: texts by their numbers, log-probs in thousandths. An older run's
    has neither tokens nor a name."""
    if row["role"] == "outcomes":
        return row
    result = {name: row.get(name) for name in COPIED.split()}
    tokens = row.get("tokens") or []
    if row["completion"] not in "".join(tokens):
        result["completion"] = index(row["completion"], texts)
    for name in ("question", "prompt", "response"):
        if name in row:
            result[name] = index(row[name], texts)
    result["tokens"] = [index(token, texts) for token in tokens]
    for name in ("logprobs", "log_ratios"):
        # A demonstration has none: nothing was drawn.
        result[name] = [round(1000 * value) for value in row.get(name) or []] or None
    for name in ("reward", "advantage"):
        result[name] = number(row[name])
    return {name: value for name, value in result.items() if value is not None}


def index(text, texts):
    return texts.setdefault(text[:LONGEST], len(texts))


def picture(page, path):
    """Chromium's picture of the page, as a PNG."""
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.png"
        command = chromium(profile, f"--screenshot={made}", page.resolve().as_uri())
        subprocess.run(command, capture_output=True)
        if not made.exists():
            raise InputError("--picture: Chromium made none")
        shutil.copy(made, path)


def chromium(profile, *more):
    """The command that starts it without a window, with its files in the folder `profile`."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        raise InputError(f"none of {', '.join(BROWSERS)} is installed")
    # As root it has no sandbox; Windows has no root.
    root = getattr(os, "getuid", os.getpid)() == 0
    flags = WINDOWLESS + " --no-sandbox" * root
    return [browser, *flags.split(), f"--user-data-dir={profile}", *more]


def main(argv=None):
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--picture", action="store_true", help="figures/page.png too")
    args = parser.parse_args(argv)
    page = write_page(args.run)
    print(page)
    if args.picture:
        picture(page, FOLDER / "page.png")


if __name__ == "__main__":
    run_command(main)
