"""Compare runs of train.py: a table of their last evaluations, and their curves.

    python -m figures.compare RUN ... [--out compare.svg] [--json]

RUN is a folder with a metrics.jsonl. Folders whose names differ only in a whole number at the end
(gc-rl-0, gc-rl-1) are seeds of one method: one line in the picture, with a band from the least to
the greatest. The table's columns are the first run before training (start) and every run at its
last evaluation; where methods have seeds, a second table has their mean, least and greatest. The
rows (`eval/...`), all on held-out problems and with greedy decoding:

    generation             responses that are right
    critique               judgements that are right, on as many right responses as wrong ones
    critique_p1, _p2       the same on the right responses, on the wrong ones
    critique_precision     responses called right that are right
    critique_recall        right responses that are called right
    critique_unreadable    critiques without a judgement
    critique_truncated     critiques that were truncated
    t1, t2, delta          first attempts that are right, second attempts, t2 - t1
    i_to_c, c_to_i         wrong first and then right, right first and then wrong
    kept                   wrong first answers that the second attempt gives again
    unchanged              second attempts that repeat the first word for word
    truncated              attempts that were truncated
    size, pairs            problems and critique pairs in the evaluation
"""

import json
import os
import re
from pathlib import Path

from details.data import mean, run_command
from details.errors import InputError
from figures.chart import command, line_charts
from figures.tables import print_table

SEEDS_TABLE = (  # its rows
    "eval/generation",
    "eval/critique",
    "eval/t1",
    "eval/t2",
    "eval/delta",
    "eval/i_to_c",
    "eval/c_to_i",
)
CURVES = {  # {title: metric}
    "held out: generation": "eval/generation",
    "held out: critique": "eval/critique",
    "held out: t2": "eval/t2",
    "held out: delta": "eval/delta",
    "in training: t1": "t1",
    "in training: t2": "t2",
    "in training: delta": "delta",
    "in training: kept": "kept",
}


def read_metrics(folder):
    """The rows of a run's metrics.jsonl."""
    path = Path(folder) / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line, parse_constant=lambda _: None)  # NaN is nothing to draw
            row["step"] = int(row["step"])
        except Exception:  # a line that a crash left half-written, or no object with a step
            continue
        rows.append(row)
    if not any("eval/generation" in row for row in rows):
        raise InputError(f"{path}: no eval/generation in it")
    return rows


def evaluation(rows, index):
    """The first (index 0) or the last (-1) evaluation of a run."""
    evaluated = [row for row in rows if "eval/generation" in row]
    numbers = {}
    for key, value in evaluated[index].items():
        if key == "step" or key.startswith("eval/"):
            numbers[key] = value
    return numbers


def curve(rows, key):
    """[(step, value), ...] of a metric, where it has a value."""
    points = []
    for row in rows:
        value = row.get(key)
        if value is not None:
            points.append((row["step"], value))
    return points


def by_method(names):
    """{method: its folders}; several are its seeds. names: {folder: name}."""
    groups = {}
    for folder, name in names.items():
        # The 5 of alpha-0.5 is no seed.
        method = re.sub(r"(?<![\d.])\d+$", "*", name)
        groups.setdefault(method, []).append(folder)
    methods = {}
    for method, folders in groups.items():
        heading = names[folders[0]]
        if len(folders) > 1:
            heading = f"{method}, {len(folders)} seeds"
        methods[heading] = folders
    return methods


def spread(values):
    """The mean, as text with the least and the greatest where there are several values."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return mean(values)
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compare(folders, picture):
    """Print the tables and write the picture; {folder: its last evaluation}."""
    runs = {folder: read_metrics(folder) for folder in folders}
    last = {folder: evaluation(rows, -1) for folder, rows in runs.items()}
    # A run is named by its path below the folder that all of them are in.
    parents = [os.path.dirname(os.path.abspath(folder)) for folder in runs]
    above = os.path.commonpath(parents)
    names = {folder: os.path.relpath(folder, above) for folder in runs}
    columns = {"(start)": evaluation(runs[folders[0]], 0)}
    for folder, name in names.items():
        columns[name] = last[folder]
    print_table("last evaluation", columns)

    methods = by_method(names)
    if len(methods) < len(runs):
        columns = {}
        for method, seeds in methods.items():
            heading = method.rjust(len("-0.001 (-0.002 to -0.001)"))  # as wide as a cell
            columns[heading] = {}
            for key in SEEDS_TABLE:
                values = [last[seed].get(key) for seed in seeds]
                columns[heading][key] = spread(values)
        print_table("mean (least to greatest)", columns)

    charts = []
    for title, key in CURVES.items():
        series = {}
        for method, seeds in methods.items():
            series[method] = [curve(runs[seed], key) for seed in seeds]
        charts.append((title, "step", series))
    line_charts(picture, charts, "On held-out problems, greedy; in training, as sampled")
    return last


def main(argv=None):
    parser = command(__doc__, "compare.svg")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder with a metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="last line: {run: last evaluation}")
    args = parser.parse_args(argv)
    last = compare(args.runs, args.out)
    print(f"picture: {args.out}")
    if args.json:
        print(json.dumps(last))


if __name__ == "__main__":
    run_command(main)
