"""What a run tells: its metrics, lines of numbers on the screen (figures/tables.py: its result).

A step is a line of numbers, sampled from the training problems; an evaluation, greedy on held-out
problems, is a line in the same columns.
"""

import sys

from tqdm import tqdm

from details.data import lose_output, mean, write_jsonl

# For tqdm's `disable`: bars are for terminals, and for notebooks, which are no terminals.
BAR_OFF = False if "ipykernel" in sys.modules else None

# {heading: (metrics of a step, of which the first that is there is shown; one of an evaluation)}
COLUMNS = {
    "answers": ("response/accuracy t1", "eval/generation"),
    "critiques": ("critique/accuracy", "eval/critique"),
    "attempt 2": ("t2", "eval/t2"),
    "no spread": ("groups/no_spread", None),
    "truncated": ("truncated", "eval/truncated"),
    "seconds": ("seconds/step", None),
}


def say(text):
    """Print a line above the progress bars. A pipe whose reader has ended costs no step: Ctrl-C on
    `train.py | tee log` ends tee, and the run has yet to save."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        lose_output()


# ------------------------------------------------------------------------------------- metrics


def step_metrics(samples, groups, batches, norms):
    """What a rollout was like and how it was learned, its advantages given. groups: one key for
    each sample; batches: the samples of each optimizer step; norms: of its gradient."""
    spread = {group for group, sample in zip(groups, samples) if sample.advantage != 0}
    metrics = {
        "groups/no_spread": mean(group not in spread for group in set(groups)),
        **truncation(samples),
        # E[-log p] under p is the entropy: the sampler's log-probs estimate it without bias.
        "entropy": -mean(p for sample in samples for p in sample.logprobs),
        "updates": len(norms),
    }
    for role in sorted({sample.role for sample in samples}):
        own = [sample for sample in samples if sample.role == role]
        metrics[f"length/{role}"] = mean(len(sample.tokens) for sample in own)
        k3 = [value for sample in own for value in sample.k3 or []]
        if k3:
            metrics[f"kl/{role}"] = mean(k3)
    if norms:
        metrics["grad_norm"] = mean(norms)
        # Of the learner against the sampler: before the first optimizer step.
        distances = [abs(value) for sample in batches[0] for value in sample.log_ratios]
        metrics["ratio/max_log"] = max(distances)
        metrics["ratio/mean_log"] = mean(distances)
        clipped = [value for batch in batches for sample in batch for value in sample.clipped]
        metrics["ratio/clipped"] = mean(clipped)
    return metrics


def truncation(samples):
    """The share of completions that were truncated; and of those that ended inside their thinking,
    if there are any."""
    metrics = {"truncated": mean(not (s.stopped or s.unclosed) for s in samples)}
    unclosed = mean(s.unclosed for s in samples)
    if unclosed:
        metrics["unclosed"] = unclosed
    return metrics


def log_row(out, state, row):
    """Every row of metrics comes through here: the place to hand it on to another logger."""
    write_jsonl(out / "metrics.jsonl", [row], "a")
    state["metrics"].append(row)
    reason = why_nothing_is_learned(row)
    if reason and reason not in state["reasons"]:
        say(reason)
        state["reasons"].append(reason)
    show_step(row)


def show_step(row):
    """A row of metrics, as one line of numbers or two."""
    evaluated = "eval/generation" in row
    if evaluated:
        say("\nstep            " + cells(COLUMNS))
    if row["step"] > 0:
        values = [first_of(row, names) for names, _ in COLUMNS.values()]
        say(f"{row['step']:<16}" + cells(values))
    if row["step"] == 1 and "pass@n" in row:
        say(
            f"the starting policy, as sampled: {values[0]:.3f} of its answers are right; "
            f"{row['pass@n']:.3f} of the questions have a right one among n (pass@n)"
        )
    if evaluated:
        values = [row.get(name) for _, name in COLUMNS.values()]
        say(f"{row['step']:<6}held out  " + cells(values))


def first_of(row, names):
    """The first of the metrics that the row has, else None."""
    for name in names.split():
        if name in row:
            return row[name]


def cells(values):
    return "".join(f"{number(value):>10}" for value in values)


def number(value):
    """A metric as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def why_nothing_is_learned(metrics):
    """A line that says why a step could not learn anything, and what to do; None if it could."""
    accuracy = first_of(metrics, "response/accuracy t1")
    truncated = metrics.get("truncated", 0)
    if truncated == 1:
        return "cannot learn: all completions were truncated; raise --max-new-tokens"
    if metrics.get("unclosed") and truncated + metrics["unclosed"] > 0.999:
        return "cannot learn: no thinking ends; a --model whose chat template opens no <think>"
    if metrics.get("response/truncated") == 1:
        return "cannot learn: all responses were truncated; raise --max-new-tokens"
    if metrics.get("critique/truncated") == 1:
        return "the critic cannot learn: all critiques were truncated; raise --max-new-tokens"
    if metrics.get("traces") == 0:
        return "cannot learn: no second attempt is right; --cold-start, or easier --data"
    if metrics.get("critique/unreadable") == 1:
        return "the critic cannot learn: no critique ends in a judgement; --cold-start"
    if metrics.get("groups/no_spread") == 1:
        if accuracy == 1:
            return "cannot learn: all completions are right, none is better; harder --data"
        if accuracy == 0:
            return "cannot learn: all completions are wrong; --cold-start, or easier --data"
        return "cannot learn: inside each group rewards are equal; a larger --n or --temperature"
    if metrics.get("critique/pairs") == 0:
        return "the critic cannot learn: no question has right and wrong responses; a larger --n"
