"""Draw the accuracy by vote against the samples that a problem is given.

    python sample.py --model OUT --vote --json > votes.json
    python -m figures.votes votes.json [--out votes.svg]

The file's last line is a JSON object: {"vote/parallel": {"2": 0.7, "4": 0.75}, ...}. Its keys that
do not begin with vote/ are ignored.
"""

import json
from pathlib import Path

from figures.chart import command, line_charts
from reward import InputError, exits


def main(argv=None):
    parser = command(__doc__, "votes.svg")
    parser.add_argument("file", metavar="FILE.json", help="its last line is a JSON object of votes")
    args, series = parser.parse_args(argv), {}
    lines = Path(args.file).read_bytes().strip().splitlines()
    try:
        for name, row in json.loads(lines[-1]).items():
            if name.startswith("vote/"):
                votes = [(int(k), float(share)) for k, share in row.items() if share is not None]
                series[name.removeprefix("vote/")] = [votes]
    except (LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{args.file}: its last line is no JSON object of votes") from error
    if not any(map(any, series.values())):
        raise InputError(f"{args.file}: no votes on its last line")
    chart = ("accuracy by vote", "samples per problem", series)
    line_charts(args.out, [chart], "Self-correction at inference")
    print(f"picture: {args.out}")


if __name__ == "__main__":
    exits(main)
