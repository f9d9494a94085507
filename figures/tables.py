"""Long tables of metrics."""

from details.log import number


def print_table(title, columns):
    """A line for each metric of any column {heading: {metric: value}}, under its own name."""
    width = max(9, *(len(heading) + 2 for heading in columns))
    print(f"\n{title:32}" + "".join(f"{heading:>{width}}" for heading in columns))
    names = [name for column in columns.values() for name in column]
    for name in dict.fromkeys(names):
        line = f"{name:32}"
        for column in columns.values():
            line += f"{number(column.get(name)):>{width}}"
        print(line)
