"""Line charts as SVG without a plotting library: three in a row, legible in light and dark mode."""

import math
import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import namedtuple
from html import escape
from pathlib import Path

from details.errors import InputError

# The plotted area of a chart, and what stands to its left and above it.
WIDE = 296
HIGH = 190
LEFT = 56
TOP = 30

# A chart with all that stands around it, and the margin of the picture.
CELL_WIDE = 376
CELL_HIGH = 284
MARGIN = 16

Point = namedtuple("Point", "x mean least greatest")


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
    size = max(abs(low), abs(high))
    spread = max(high - low, 0.1 * size) or 1.0
    step = round_step(spread / count, whole)
    # Rounded, since 0.6 / 0.2 is 2.9999999999999996.
    first = math.floor(round(low / step, 6))
    last = math.ceil(round(high / step, 6))
    # A flat line on a tick: the axis goes on towards zero, never beyond 1.
    if first == last and last > 0:
        first -= 1
    elif first == last:
        last += 1
    return [k * step for k in range(first, last + 1)]


def round_step(least, whole):
    """The smallest distance between ticks that is round and not below `least`."""
    if whole:
        least = max(least, 1.0)
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 2.5, 5):
        step = power * factor
        fits = not whole or step % 1 == 0
        if fits and step > 0.999 * least:
            return step
    return power * 10


def band(runs):
    """[(x, mean, least, greatest)] of several runs, at each x that all of them have."""
    runs = [dict(run) for run in runs if run]
    points = []
    for x in sorted(set().union(*runs)):
        values = [run[x] for run in runs if x in run]
        if len(values) == len(runs):
            mean = sum(values) / len(values)
            points.append(Point(x, mean, min(values), max(values)))
    return points


def text(x, y, words, classes=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'


def draw_chart(title, label, bands, pens):
    """One chart with its upper left corner at the origin. bands: {series name: points of `band`};
    pens: {series name: its CSS classes}."""
    points = [point for line in bands.values() for point in line]
    low = min(point.x for point in points)
    high = max(point.x for point in points)
    least = min(point.least for point in points)
    greatest = max(point.greatest for point in points)
    rows = ticks(least, greatest, 5)

    def across(x):
        share = (x - low) / (high - low) if high > low else 0.5
        return LEFT + WIDE * share

    def down(y):
        return TOP + HIGH * (rows[-1] - y) / (rows[-1] - rows[0])

    def path(corners):
        return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in corners)

    # The title, the axes and their numbers.
    bottom = TOP + HIGH
    parts = [text(LEFT, 16, title, "head")]
    parts.append(text(LEFT + WIDE / 2, bottom + 37, label, "faint middle"))
    for y in rows:
        parts.append(f'<path class="grid" d="M{LEFT},{down(y):.1f}h{WIDE}"/>')
        parts.append(text(LEFT - 7, down(y) + 4, f"{y:.10g}", "faint end"))
    for x in ticks(low, high, 7, whole=True):
        if low <= x <= high:
            parts.append(text(across(x), bottom + 18, f"{x:.10g}", "faint middle"))

    # Each series as a line in a band.
    for name, line in bands.items():
        means = [(point.x, point.mean) for point in line]
        least = [(point.x, point.least) for point in line]
        greatest = [(point.x, point.greatest) for point in line]
        parts.append(f'<g class="{pens[name]}"><path d="M{path(means)}"/>')
        if least != greatest:
            outline = greatest + least[::-1]
            parts.append(f'<polygon points="{path(outline)}"/>')
        if len(line) <= 12:  # few enough to show where something was measured
            for x, y in means:
                parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>')
        parts.append("</g>")
    return "\n".join(parts)


def draw_legend(pens, width):
    """The legend, wrapped at `width`, and the height at which it ends."""
    parts = []
    x = MARGIN
    y = 48
    for name, pen in pens.items():
        if len(name) > 40:
            name = "\u2026" + name[-39:]  # names differ at the end
        length = 48 + 7 * len(name)
        if x > MARGIN and x + length > width:
            x = MARGIN
            y += 20
        line = f'<g class="{pen}"><path d="M{x},{y - 4}h24"/></g>'
        parts.append(line + text(x + 30, y, name))
        x += length
    return "\n".join(parts), y + 24


def refuse_other_files(path):
    """Raises InputError rather than let a picture be written over a file that is none."""
    path = Path(path)
    if path.is_file() and not path.read_bytes().lstrip().startswith(b"<svg"):
        raise InputError(f"{path}: not an SVG; it is not written over")


def write_svg(path, title, width, height, parts):
    """An SVG with a title and the colours of style.css; parts: what stands below the title. Raises
    OSError where nothing can be written."""
    refuse_other_files(path)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = Path(__file__).with_name("style.css")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style.read_text(encoding='utf-8')}</style>",
        text(MARGIN, 24, title, "head"),
        *parts,
        "</svg>\n",
    ]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def line_charts(path, charts, title):
    """Write an SVG of line charts.

    charts: [(title, label of the x axis, {series name: runs}), ...]; runs: [[(x, y), ...], ...],
    drawn as their mean with a band from the least to the greatest where there are several. Series
    and charts without a point are left out. Raises InputError rather than write over a file that
    is not an SVG, OSError where nothing can be written.
    """
    # What has points. A series has the same pen in all charts.
    filled = []
    pens = {}
    for name, label, series in charts:
        bands = {}
        for key, runs in series.items():
            points = band(runs)
            if points:
                bands[key] = points
                # Eight colours; four solid lines, four dashed, four dotted, ...
                pens.setdefault(key, f"c{len(pens) % 8} d{len(pens) // 4 % 3}")
        if bands:
            filled.append((name, label, bands))

    # The charts below the legend, three in a row.
    width = CELL_WIDE * max(1, min(3, len(filled)))
    legend, top = draw_legend(pens, width)
    height = top + CELL_HIGH * math.ceil(len(filled) / 3)
    parts = [legend]
    for index, chart in enumerate(filled):
        row, column = divmod(index, 3)
        corner = f"{column * CELL_WIDE},{top + row * CELL_HIGH}"
        parts.append(f'<g transform="translate({corner})">')
        parts.append(draw_chart(*chart, pens))
        parts.append("</g>")
    write_svg(path, title, width, height, parts)


def forest(path, rows, title):
    """Write a forest plot, narrow enough for a phone: a line for each interval, a vertical line
    where nothing differs, in grey what would be too small to matter.

    rows: (heading,) or (label, verdict, (mean, least, greatest) or None, smallest difference that
    would matter), ...; the verdict colours the line.
    """
    numbers = [0.0]
    for _, *found in rows:
        if found and found[1]:
            numbers += found[1]
    marks = ticks(min(numbers), max(numbers), 4)
    start = 130  # behind the verdicts
    end = 404

    def across(x):
        return start + (end - start) * (x - marks[0]) / (marks[-1] - marks[0])

    parts = []
    y = 44
    for label, *found in rows:
        y += 0 if found else 10
        for line in textwrap.wrap(label, 56):
            parts.append(text(MARGIN, y, line, "" if found else "head"))
            y += 17
        if not found:
            continue
        verdict, interval, least = found
        parts.append(text(MARGIN, y, verdict, "faint"))
        colour = "c1"  # orange: does not hold
        if verdict == "holds here":
            colour = "c0"  # blue
        elif verdict.startswith("not "):
            colour = "c6"  # grey: not decided, or not run yet
        parts.append(f'<g class="{colour}">')
        if interval:
            middle, low, high = map(across, interval)
            parts.append(f'<path d="M{low:.1f},{y - 4}H{high:.1f}"/>')
            parts.append(f'<circle cx="{middle:.1f}" cy="{y - 4}" r="4"/>')
        left = max(start, across(-least))
        right = min(end, across(least))
        corners = [(left, y - 11), (right, y - 11), (right, y + 3), (left, y + 3)]
        points = " ".join(f"{x:.1f},{height}" for x, height in corners)
        parts.append(f'</g><polygon class="c6" points="{points}"/>')
        y += 20
    grid = []
    for x in marks:
        grid.append(f'<path class="grid" d="M{across(x):.1f},34V{y}"/>')
        grid.append(text(across(x), y + 18, f"{x:.10g}", "faint middle"))
    grid.append(f'<path class="c6" d="M{across(0):.1f},34V{y}"/>')
    write_svg(path, title, 420, y + 32, grid + parts)
