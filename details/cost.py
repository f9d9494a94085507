"""What a step costs: where its time goes, and how many completions it draws.

Work is timed where it is done, for the whole process: `timed` stands around it. A run begins each
step with `start_step` and logs what `step_cost` returns.
"""

import time
from collections import Counter
from contextlib import contextmanager

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

COST = Counter()  # as metrics: `samples`, the completions drawn; `seconds/KIND` of work
start_step = COST.clear


@contextmanager
def timed(kind):
    """Add the seconds that the block takes."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_initialized():  # where work goes on after the call
        torch.cuda.synchronize()
    COST[f"seconds/{kind}"] += time.perf_counter() - start


def step_cost(tokens):
    """The step's cost as metrics. tokens: those of the samples that may be learned."""
    seconds = COST["seconds/sample"] + COST["seconds/update"]
    return {
        "samples": 0,
        **COST,
        "seconds/step": seconds,
        "tokens": tokens,
        "tokens/s": tokens / seconds,
    }
