"""What a step costs: where its time goes, how many completions it draws, how much is padding.

Work is timed and counted where it is done, for the whole process: `timed` around a piece of it,
`count` inside. A run begins each step with `start_step` and logs what `step_cost` returns.
"""

import time
from collections import Counter
from contextlib import contextmanager

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

SECONDS = Counter()  # {kind of work: seconds}
COUNTS = Counter()  # samples: completions drawn; computed: tokens with padding; useful: without
count = COUNTS.update


def start_step():
    SECONDS.clear()
    COUNTS.clear()


@contextmanager
def timed(kind):
    """Add the seconds that the block takes."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_initialized():  # where work goes on after the call
        torch.cuda.synchronize()
    SECONDS[kind] += time.perf_counter() - start


def step_cost(tokens):
    """The step's cost as metrics; `padding`: the share of computed tokens that nobody needed.
    tokens: those that were learned from."""
    SECONDS["step"] = SECONDS["sample"] + SECONDS["update"]
    return {f"seconds/{kind}": value for kind, value in SECONDS.items()} | {
        "samples": COUNTS["samples"],
        "tokens": tokens,
        "tokens/s": tokens / SECONDS["step"],
        "padding": 1 - COUNTS["useful"] / max(1, COUNTS["computed"]),
    }
