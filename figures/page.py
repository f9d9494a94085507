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
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from details.data import read_jsonl, run_command
from details.errors import InputError

FOLDER = Path(__file__).parent
LONGEST = 20_000  # characters of a text that are shown
LARGEST = 20_000_000  # characters of data; above that every other step is left out
COPIED = """id parent role right says_right stopped clipped
response_right wrong_line no_line sound again"""
BROWSERS = "chromium", "chromium-browser", "google-chrome"


def write_page(out):
    """Writes OUT/run.html, whole or not at all; returns its path."""
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name in ("css", "js"):
        text = (FOLDER / f"page.{name}").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"{{{name} hash}}", digest).replace(f"{{{name}}}", text)
    page = page.replace("{data}", as_json(data_of(Path(out))))
    path = Path(out) / "run.html"
    path.with_suffix(".partial").write_text(page, encoding="utf-8", newline="\n")
    os.replace(path.with_suffix(".partial"), path)
    return path


def as_json(data):
    """JSON without `<`, in ASCII: half of a surrogate pair is spelled out too."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    while len(text) > LARGEST and len(data["steps"]) > 1:
        kept = list(data["steps"])[::-2]
        data["steps"] = {step: data["steps"][step] for step in reversed(kept)}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def data_of(out):
    """What page.js shows, from the files of the folder."""
    if not (out / "metrics.jsonl").exists():
        raise InputError(f"{out}: there is no run in it: no metrics.jsonl")
    flags = rows_of(out / "run.json") or [{}]
    rows = rows_of(out / "metrics.jsonl", with_step)
    names = {name: None for row in rows for name in row}
    data = {
        "name": out.resolve().name,
        "flags": {name: str(value)[:200] for name, value in flags[0].items()},
        "metrics": {name: [number(row.get(name)) for row in rows] for name in names},
        "outcomes": {},  # {step: [[question, outcomes of its responses], ...]}
        "steps": {},  # {step: its samples}
        "probes": {},  # the same
    }
    texts = {}  # {text: its number}: most come many times

    def add(row):
        try:
            step = with_step(row)["step"]
            if row["role"] == "outcomes":
                asked = [[str(question), str(found)] for question, found in row["questions"]]
                data["outcomes"][step] = asked
            else:
                kind = "probes" if row.get("probe") else "steps"
                data[kind].setdefault(step, []).append(packed(row, texts))
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"no row of samples.jsonl: {error!r}") from error

    rows_of(out / "samples.jsonl", add)
    data["texts"] = list(texts)
    data["answers"] = {}
    for name in ("train.jsonl", "held_out.jsonl"):
        for row in rows_of(out / name):
            question = str(row.get("question"))[:LONGEST]
            if question in texts:
                data["answers"][question] = str(row.get("answer", ""))[-200:]
    return data


def rows_of(path, check=dict):
    """The rows of a file; none where there is none, or nothing in it yet."""
    if not path.exists() or not path.stat().st_size:
        return []
    return read_jsonl(path, check)


def with_step(row):
    if type(row.get("step")) is not int:
        raise ValueError("a row with a step is expected")
    return row


def number(value):
    """A metric in four digits; None for what is no number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(f"{value:.4g}") if isinstance(value, float) else value


def packed(row, texts):
    """A row as page.js reads it: texts by their numbers, log-probs in thousandths. An older run's
    has neither tokens nor a name."""
    result = {name: row.get(name) for name in COPIED.split()}
    tokens = row.get("tokens") or []
    if row["completion"] not in "".join(tokens):
        result["completion"] = index(row["completion"], texts)
    for name in ("question", "prompt", "response"):
        if name in row:
            result[name] = index(row[name], texts)
    result["tokens"] = [index(token, texts) for token in tokens]
    for name in ("logprobs", "log_ratios"):
        result[name] = row.get(name) and [round(1000 * value) for value in row[name]]
    for name in ("reward", "advantage"):
        result[name] = number(row[name])
    return {name: value for name, value in result.items() if value is not None}


def index(text, texts):
    return texts.setdefault(text[:LONGEST], len(texts))


def picture(page, path):
    """Chromium's picture of the page, as a PNG."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        raise InputError(f"--picture: none of {', '.join(BROWSERS)} is installed")
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--window-size=1280,860"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")
        command += [f"--screenshot={path}", page.resolve().as_uri()]
        subprocess.run(command, capture_output=True, timeout=100)
    if not path.exists():
        raise InputError(f"--picture: {browser} made none")


def main(argv=None):
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="out", help="the folder of a run [out]")
    parser.add_argument("--picture", action="store_true", help="figures/page.png too")
    args = parser.parse_args(argv)
    page = write_page(args.run)
    print(page)
    if args.picture:
        picture(page, FOLDER / "page.png")


if __name__ == "__main__":
    run_command(main)
