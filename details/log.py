"""What a run tells: its metrics, lines of numbers on the screen, the result.

A step is a line of numbers, sampled from the training problems; an evaluation, greedy on held-out
problems, is a line in the same columns.
"""

import shlex
import sys

from tqdm import tqdm

from details.data import lose_output, mean, write_jsonl
from details.errors import printable

# For tqdm's `disable`: bars are for terminals, and for notebooks, which are no terminals.
BAR_OFF = False if "ipykernel" in sys.modules else None

# {heading: (metrics of a step, of which the first that is there is shown; one of an evaluation)}
COLUMNS = {
    "answers": ("response/accuracy t1", "eval/generation"),
    "critiques": ("critique/accuracy", "eval/critique"),
    "attempt 2": ("t2", "eval/t2"),
    "zero-var": ("groups/no_spread", None),
    "truncated": ("truncated", "eval/truncated"),
    "seconds": ("seconds/step", None),
}

# What the numbers of an evaluation are.
MEANING = {
    "eval/generation": "answers that are right",
    "eval/critique": "judgements that agree with the outcome",
    "eval/critique_p1": "right responses that are judged right",
    "eval/critique_p2": "wrong responses that are judged wrong",
    "eval/critique_precision": "responses judged right that are right",
    "eval/critique_sound": "wrong responses judged wrong for the right step",
    "eval/critique_unreadable": "critiques without a judgement",
    "eval/self_critique": "judgements of its own answers that agree",
    "eval/revised": "right once what it judges wrong is corrected",
    "eval/t2": "second attempts that are right",
    "eval/delta": "second attempts minus answers",
    "eval/i_to_c": "wrong at first, then right",
    "eval/c_to_i": "right at first, then wrong",
    "eval/kept": "wrong answers that are given again",
    "eval/truncated": "completions that were truncated",
    "eval/unclosed": "completions that ended inside their thinking",
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


def step_metrics(samples, batches, norms):
    """What a rollout was like and how it was learned, its advantages given. batches: the samples of
    each optimizer step; norms: of its gradient."""
    groups = {sample.group for sample in samples}
    spread = {sample.group for sample in samples if sample.advantage != 0}
    metrics = {
        "groups/no_spread": mean(group not in spread for group in groups),
        **without_an_end(samples),
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


def without_an_end(samples):
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


def log_answers(state, step, answers):
    """Keep which held-out questions were wrong at the start, and which of these are right now."""
    wrong = [sample.problem.question for sample in answers if not sample.right]
    if step == 0:
        state["missed"] = wrong
    state["gained"] = [question for question in state["missed"] if question not in wrong]


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
    accuracy = metrics.get("response/accuracy", metrics.get("t1"))
    truncated = metrics.get("truncated", 0)
    if truncated == 1:
        return "cannot learn: all completions were truncated; raise --max-new-tokens"
    if truncated + metrics.get("unclosed", 0) > 0.999:
        return "cannot learn: no thinking ends; a --model whose chat template opens no <think>"
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
    if metrics.get("critique/pairs") == 0 and "groups/no_spread" not in metrics:
        return (
            "cannot learn: no question has both a right and a wrong response, so the critic has no "
            "pairs; a larger --n, easier or harder --data"
        )


# ------------------------------------------------------------------------------------ the result


def show_result(state, out):
    """One sentence, the evaluations at the start and at the end, where the page is, and a
    question that the policy has learned to answer."""
    rows = state["metrics"]
    start = rows[0]
    # The last step has one, unless a run was extended, stopped, and ended where it stopped.
    end = [row for row in rows if "eval/generation" in row][-1]
    gains = []
    for heading, name in (("answers", "eval/generation"), ("critiques", "eval/critique")):
        if start[name] is not None:
            gains.append(f"{heading} {100 * start[name]:.0f}% -> {100 * end[name]:.0f}%")
    sizes = f"{end['eval/size']} held-out problems, {end['eval/pairs']} pairs"
    say(f"\n{', '.join(gains)} ({sizes}) after step {end['step']}, in {state['seconds']:.0f} s\n")
    say(f"{'held out, greedy':27}{'start':>10}{'end':>10}")
    for name, meaning in MEANING.items():
        if name in end:
            values = cells([start.get(name), end.get(name)])
            say(f"{name:27}{values}  {meaning}")
    for reason in state["reasons"]:
        say(reason)
    say(f"\nto read, in a browser: {out / 'run.html'}")
    say(f"{out / 'start'} and {out / 'resume.pt'} serve --resume only: delete them if you are done")
    asked = (state["gained"] + ["--eval"])[0]
    quoted = shlex.quote(str(out)), shlex.quote(printable(asked))
    say("try: python sample.py --model {} {}".format(*quoted))
