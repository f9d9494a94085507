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


def read_votes(path):
    """{"vote/...": [(samples per problem, accuracy), ...]} from the last line of a file."""
    lines = Path(path).read_bytes().strip().splitlines()
    votes = {}
    try:
        for key, line in json.loads(lines[-1]).items():
            if key.startswith("vote/"):
                votes[key] = [(int(k), float(v)) for k, v in line.items() if v is not None]
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its last line is no JSON object of votes") from error
    if not any(votes.values()):
        raise InputError(f"{path}: no votes on its last line")
    return votes


def use(argv):
    parser = command(__doc__, "votes.svg")
    parser.add_argument("file", metavar="FILE.json", help="its last line is a JSON object of votes")
    args = parser.parse_args(argv)
    series = {key.removeprefix("vote/"): [line] for key, line in read_votes(args.file).items()}
    chart = ("accuracy by vote", "samples per problem", series)
    line_charts(args.out, [chart], "Self-correction at inference")
    print(f"picture: {args.out}")


def main(argv=None):
    exits(use, argv)


if __name__ == "__main__":
    main()
