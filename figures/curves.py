"""A run's curves as a picture: of what was sampled in training, and on held-out problems."""

from details.log import COLUMNS, first_of
from figures.chart import line_charts


def draw_curves(path, rows):
    """Every step's numbers and the evaluations of one run, as an SVG."""
    charts = []
    for heading, (names, evaluation) in COLUMNS.items():
        sampled = []
        held_out = []
        for row in rows:
            step = row["step"]
            value = first_of(row, names)
            if step > 0 and value is not None:
                sampled.append((step, value))
            value = row.get(evaluation)
            if value is not None:
                held_out.append((step, value))
        series = {"sampled in training": [sampled], "held out, greedy": [held_out]}
        charts.append((heading, "step", series))
    line_charts(path, charts, "One run")
