"""Compare runs of train.py: a table of their last evaluations, and their curves.

    python -m figures.compare RUN ... [--out compare.svg] [--json]

RUN is a folder with a metrics.jsonl. Folders whose names differ only in a whole number at the end
(gc-rl-0, gc-rl-1) are seeds of one method: one line in the picture, with a band from the least to
the greatest. The table's columns are the first run before training (start) and every run at its
last evaluation; its rows, all on held-out problems and with greedy decoding:

    generation             responses that are right
    critique               judgements that are right, on as many right responses as wrong ones
    critique_p1, _p2       the same on the right responses, on the wrong ones
    critique_precision     responses called right that are right
    critique_recall        right responses that are called right
    t1, t2, delta          first attempts that are right, second attempts, t2 - t1
    i_to_c, c_to_i         wrong first and then right, right first and then wrong
    kept                   wrong first answers that the second attempt gives again
    unchanged              second attempts that repeat the first word for word
    truncated              completions that were cut at the limit
    size, pairs            problems and critique pairs in the evaluation
"""

import contextlib
import json
import os
import re
from pathlib import Path

from figures.chart import command, line_charts
from reward import InputError, exits

MAIN = ["generation", "critique", "t1", "t2", "delta", "i_to_c", "c_to_i"]
CURVES = ["eval/generation", "eval/critique", "eval/t2", "eval/delta", "t1", "t2", "delta", "kept"]


def read_metrics(folder):
    """The rows of a run's metrics.jsonl, and of those that hold an evaluation its part.

    A line that a crash left half-written, or that is no object with a step, is passed over.
    """
    path, rows, evaluations = Path(folder) / "metrics.jsonl", [], []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line, parse_constant=lambda _: None)  # NaN is nothing to draw
            if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
                rows.append(row)
                found = {key: row[key] for key in row if key.startswith("eval/")}
                evaluations += [{"step": row["step"], **found}] if found else []
    if not evaluations:
        raise InputError(f"{path}: no evaluation in it")
    return rows, evaluations


def curve(rows, key):
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def methods(names):
    """{method: its folders}; several are its seeds. names: {folder: name}."""
    groups = {}
    for folder, name in names.items():  # the 5 of alpha-0.5 is no seed
        groups.setdefault(re.sub(r"(?<![\d.])\d+$", "*", name), []).append(folder)
    return {f"{k}, {len(g)} seeds" if len(g) > 1 else names[g[0]]: g for k, g in groups.items()}


def cell(values):
    """The mean as text, with the least and the greatest where there are several values."""
    values = [value for value in values if value is not None] or ["-"]
    if len(values) == 1:
        return f"{values[0]:.3f}" if isinstance(values[0], float) else str(values[0])
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def show_table(title, keys, columns):
    """Print a Markdown table, aligned. columns: {head: evaluations, one for each seed}."""
    table = [[title, *columns]]
    for key in keys:
        cells = [cell([seed.get(key) for seed in seeds]) for seeds in columns.values()]
        table.append([key.removeprefix("eval/"), *cells])
    widths = [max(map(len, column)) for column in zip(*table)]
    table.insert(1, ["-" * (width - 1) + ":" for width in widths])
    for row in table:
        print("| " + " | ".join(text.rjust(width) for text, width in zip(row, widths)) + " |")
    print()


def compare(folders, picture):
    """Print the tables and write the picture; {folder: its last evaluation}."""
    runs = {folder: read_metrics(folder) for folder in folders}
    last = {folder: evaluations[-1] for folder, (_, evaluations) in runs.items()}
    # A run is named by its path below the folder that all of them are in.
    above = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in runs])
    names = {folder: os.path.relpath(folder, above) for folder in runs}
    columns = {"start": [runs[folders[0]][1][0]]}
    columns |= {names[folder]: [last[folder]] for folder in runs}
    keys = dict.fromkeys(key for [evaluation] in columns.values() for key in evaluation)
    show_table("last evaluation", keys, columns)

    groups = methods(names)
    if len(groups) < len(runs):
        columns = {method: [last[seed] for seed in seeds] for method, seeds in groups.items()}
        show_table("mean (least to greatest)", ["eval/" + name for name in MAIN], columns)
    charts = []
    for key in CURVES:
        series = {}
        for method, seeds in groups.items():
            series[method] = [curve(runs[seed][0], key) for seed in seeds]
        name = key.removeprefix("eval/")
        charts.append((f"{'in training' if name == key else 'held out'}: {name}", "step", series))
    line_charts(picture, charts, "On held-out problems, greedy; in training, as sampled")
    return last


def use(argv):
    parser = command(__doc__, "compare.svg")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder with a metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="last line: {run: last evaluation}")
    args = parser.parse_args(argv)
    last = compare(args.runs, args.out)
    print(f"picture: {args.out}")
    if args.json:
        print(json.dumps(last))


def main(argv=None):
    exits(use, argv)


if __name__ == "__main__":
    main()
