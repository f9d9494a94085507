"""Line charts as SVG without a plotting library: three in a row, legible in light and dark mode."""

import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from html import escape
from pathlib import Path

from details.data import InputError

WIDE, HIGH, LEFT, TOP = 296, 190, 56, 30  # the plotted area of a chart and its margins
CELL_WIDE, CELL_HIGH, MARGIN = 376, 284, 16


def command(doc, out):
    """The argument parser of a program that draws: its docstring as help, errors in one line."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(f"error: {message}")
    parser.add_argument("--out", default=out, help=f"where the picture goes [{out}]")
    return parser


def ticks(low, high, count, whole=False):
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart), the first not above
    `low` and the last not below `high`; `whole`: integers only.

    0 and 1 are multiples of every step below 1: an axis of shares ends at 1 by itself, and no axis
    goes below 0 unless a value does.
    """
    # A range of less than a tenth of the values would show noise as if it were news.
    spread = max(high - low, 0.1 * max(abs(low), abs(high))) or 1.0
    rough = max(spread / count, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10)]
    step = next(s for s in steps if s > 0.999 * rough and not (whole and s % 1))
    first = math.floor(round(low / step, 6))  # rounded: 0.6 / 0.2 is 2.9999999999999996
    last = math.ceil(round(high / step, 6))
    if first == last:  # a flat line on a tick: the axis goes on towards zero, never beyond 1
        first, last = (first - 1, last) if last > 0 else (first, last + 1)
    return [k * step for k in range(first, last + 1)]


def band(runs):
    """[(x, mean, least, greatest)] of several runs, at each x that all of them have."""
    runs = [dict(run) for run in runs if run]
    points = []
    for x in sorted(set.intersection(*map(set, runs)) if runs else []):
        values = [run[x] for run in runs]
        points.append((x, sum(values) / len(values), min(values), max(values)))
    return points


def text(x, y, words, classes=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'


def draw_chart(title, label, bands, pens):
    """One chart with its upper left corner at the origin. bands: {series name: points of `band`};
    pens: {series name: its CSS classes}."""
    points = [point for line in bands.values() for point in line]
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    rows = ticks(min(p[2] for p in points), max(p[3] for p in points), 5)

    def across(x):
        return LEFT + WIDE * ((x - low) / (high - low) if high > low else 0.5)

    def down(y):
        return TOP + HIGH * (rows[-1] - y) / (rows[-1] - rows[0])

    def path(corners):
        return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in corners)

    parts = [text(LEFT, 16, title, "head")]
    parts.append(text(LEFT + WIDE / 2, TOP + HIGH + 37, label, "faint middle"))
    for y in rows:
        parts.append(f'<path class="grid" d="M{LEFT},{down(y):.1f}h{WIDE}"/>')
        parts.append(text(LEFT - 7, down(y) + 4, f"{y:.10g}", "faint end"))
    for x in ticks(low, high, 7, whole=True):
        if low <= x <= high:
            parts.append(text(across(x), TOP + HIGH + 18, f"{x:.10g}", "faint middle"))
    for name, line in bands.items():
        means = [(x, mean) for x, mean, _, _ in line]
        least, greatest = [(p[0], p[2]) for p in line], [(p[0], p[3]) for p in line]
        parts.append(f'<g class="{pens[name]}"><path d="M{path(means)}"/>')
        if least != greatest:
            parts.append(f'<polygon points="{path(greatest + least[::-1])}"/>')
        if len(line) <= 12:  # few enough to show where something was measured
            parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>' for x, y in means]
        parts.append("</g>")
    return "\n".join(parts)


def draw_legend(pens, width):
    """The legend, wrapped at `width`, and the height at which it ends."""
    parts, x, y = [], MARGIN, 48
    for name, pen in pens.items():
        name = name if len(name) <= 40 else "\u2026" + name[-39:]  # what differs is at the end
        length = 48 + 7 * len(name)
        if x > MARGIN and x + length > width:
            x, y = MARGIN, y + 20
        parts.append(f'<g class="{pen}"><path d="M{x},{y - 4}h24"/></g>' + text(x + 30, y, name))
        x += length
    return "\n".join(parts), y + 24


def line_charts(path, charts, title):
    """Write an SVG of line charts.

    charts: [(title, label of the x axis, {series name: runs}), ...]; runs: [[(x, y), ...], ...],
    drawn as their mean with a band from the least to the greatest where there are several. Series
    and charts without a point are left out. Raises InputError rather than write over a file that
    is not an SVG, OSError where nothing can be written.
    """
    path, filled, pens = Path(path), [], {}
    if path.is_file() and not path.read_bytes().lstrip().startswith(b"<svg"):
        raise InputError(f"{path}: not an SVG; it is not written over")
    for name, label, series in charts:
        bands = {key: points for key, runs in series.items() if (points := band(runs))}
        if bands:
            filled.append((name, label, bands))
            for key in bands:  # eight colours; four solid lines, four dashed, four dotted, ...
                pens.setdefault(key, f"c{len(pens) % 8} d{len(pens) // 4 % 3}")
    width = CELL_WIDE * max(1, min(3, len(filled)))
    legend, top = draw_legend(pens, width)
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    parts = [f"<style>\n{style}</style>", text(MARGIN, 24, title, "head"), legend]
    for i, chart in enumerate(filled):
        place = f"translate({i % 3 * CELL_WIDE},{top + i // 3 * CELL_HIGH})"
        parts.append(f'<g transform="{place}">\n{draw_chart(*chart, pens)}\n</g>')
    height = top + math.ceil(len(filled) / 3) * CELL_HIGH
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<title>{escape(title)}</title>'
    path.write_text("\n".join([head, *parts, "</svg>\n"]), encoding="utf-8")
