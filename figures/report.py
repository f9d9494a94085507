"""What a run tells on the screen, and its curves as a picture.

A step is a line of numbers, sampled from the training problems; an evaluation, greedy on held-out
problems, is a line in the same columns.
"""

import re
import shlex

from tqdm import tqdm

from figures.chart import line_charts

# {heading: (metrics of a step, of which the first that is there is shown; one of an evaluation)}
COLUMNS = {
    "answers": (("response/accuracy", "t1"), "eval/generation"),
    "critiques": (("critique/accuracy",), "eval/critique"),
    "second": (("t2",), "eval/t2"),
    "no spread": (("groups/no_spread",), None),
    "cut": (("truncated",), "eval/truncated"),
    "seconds": (("seconds/step",), None),
}

# What the numbers of an evaluation are.
MEANING = {
    "eval/generation": "answers that are right",
    "eval/critique": "judgements that agree with the outcome",
    "eval/critique_p1": "right responses that are judged right",
    "eval/critique_p2": "wrong responses that are judged wrong",
    "eval/critique_precision": "responses judged right that are right",
    "eval/critique_unreadable": "critiques without a judgement",
    "eval/self_critique": "the same, of judgements of its own answers",
    "eval/revised": "right after correcting what it judges wrong",
    "eval/t2": "second attempts that are right",
    "eval/delta": "second attempts minus answers",
    "eval/i_to_c": "wrong at first, then right",
    "eval/c_to_i": "right at first, then wrong",
    "eval/kept": "wrong answers that are given again",
    "eval/truncated": "completions that were cut",
}


def show_step(row):
    """A row of metrics, as one line of numbers or two."""
    evaluated = "eval/generation" in row
    if evaluated:
        headings = [f"{heading:>10}" for heading in COLUMNS]
        tqdm.write("\nstep            " + "".join(headings))
    if row["step"] > 0:
        values = [first_of(row, names) for names, _ in COLUMNS.values()]
        tqdm.write(f"{row['step']:<16}" + cells(values))
    if row["step"] == 1 and "pass@n" in row:
        accuracy = first_of(row, COLUMNS["answers"][0])
        tqdm.write(
            f"the starting policy, as sampled: {accuracy:.3f} of its answers are right; "
            f"of {row['pass@n']:.3f} of the questions at least one (pass@n)"
        )
    if evaluated:
        values = [row.get(name) for _, name in COLUMNS.values()]
        tqdm.write(f"{row['step']:<6}held out  " + cells(values))


def first_of(row, names):
    """The first of the metrics that the row has."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    return None


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
    if metrics.get("truncated") == 1:
        return "cannot learn: all completions were cut; raise --max-new-tokens"
    if metrics.get("traces") == 0:
        return "cannot learn: no second attempt is right; --cold-start, or easier --data"
    if metrics.get("critique/unreadable") == 1:
        return "the critic cannot learn: no critique ends in a judgement; --cold-start"
    if metrics.get("groups/no_spread") == 1:
        if accuracy == 1:
            return "cannot learn: all completions are right, none is better; harder --data"
        if accuracy == 0:
            return "cannot learn: all completions are wrong; --cold-start, or easier --data"
        return (
            "cannot learn: inside each group all rewards are equal; a larger --n or --temperature"
        )
    if metrics.get("critique/pairs") == 0 and "groups/no_spread" not in metrics:
        cause = "no question has both a right and a wrong response, so the critic has no pairs"
        return f"cannot learn: {cause}; a larger --n, easier or harder --data"
    return None


# ------------------------------------------------------------------------------ samples to read


def show_samples(tokenizer, step, episodes):
    """Prints one chain: a question, a response to it, a critique of that response; or both attempts
    of one conversation. Returns the rows for samples.jsonl: the groups of these episodes."""
    chain = choose_chain(episodes)
    tqdm.write(f"--- {printable(chain[0].problem.question)}")
    if chain[0].role == "critique":  # of a pair from an earlier step
        pair = chain[0].pair
        outcome = "right" if pair.right else "wrong"
        tqdm.write(f"[response, {outcome}]\n{printable(pair.response)}")
    for e in chain:
        tqdm.write(f"[{describe(e)}]\n{printable(e.text)}")
    rows = []
    for e in chain:
        group = [other for other in episodes if (other.role, other.group) == (e.role, e.group)]
        # The one that is printed first, so that the file can be read beside the screen.
        group.sort(key=lambda other: other is not e)
        rows += [sample_row(tokenizer, step, other) for other in group[:8]]
    return rows


def choose_chain(episodes):
    """Episodes that belong together, if possible some that something can be learned from."""
    ordered = sorted(episodes, key=lambda e: e.advantage == 0)
    for e in ordered:
        if e.first is not None and e.first in episodes:
            return [e.first, e]
    responses = {(e.problem, e.text): e for e in episodes if e.role == "response"}
    critiques = [e for e in ordered if e.role == "critique"]
    for e in critiques:
        if (e.problem, e.pair.response) in responses:
            return [responses[e.problem, e.pair.response], e]
    return [critiques[0] if critiques else ordered[0]]


def describe(e):
    """What an episode is worth, as in `critique says wrong, reward 0.7, advantage +0.77`."""
    if e.role == "critique":
        what = {True: "says right", False: "says wrong", None: "says nothing"}[e.says_right]
    else:
        what = "is right" if e.right else "is wrong"
    return f"{e.role} {what}, reward {e.reward:g}, advantage {e.advantage:+.2f}"


def sample_row(tokenizer, step, e):
    """An episode for a person to read."""
    return {
        "step": step,
        "role": e.role,
        "prompt": tokenizer.decode(e.sample.prompt),
        "completion": e.text,
        "stopped": e.sample.stopped,
        "right": e.right,
        "says_right": e.says_right,
        "reward": e.reward,
        "advantage": e.advantage,
    }


def printable(text):
    """Text of a model, safe for a terminal: control characters and escapes are spelled out."""
    return re.sub(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]", lambda c: repr(c[0])[1:-1], text)


# ------------------------------------------------------------------------------------ the result


def show_result(state, out):
    """One sentence, the evaluations at the start and at the end, where the curves are, and a
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
    print(f"\n{', '.join(gains)} ({sizes}) after step {end['step']}, in {state['seconds']:.0f} s\n")
    print(f"{'held out, greedy':27}{'start':>10}{'end':>10}")
    for name, meaning in MEANING.items():
        if name in end:
            values = cells([start.get(name), end.get(name)])
            print(f"{name:27}{values}  {meaning}")
    for reason in state["reasons"]:
        print(reason)
    draw_curves(out / "curves.svg", rows)
    print(f"\ncurves: {out / 'curves.svg'}")
    print(
        f"{out / 'start'} and {out / 'resume.pt'} serve --resume only: delete them if you are done"
    )
    asked = "--eval"
    if state["gained"]:
        asked = shlex.quote(printable(state["gained"][0]))
    print(f"try: python sample.py --model {out} {asked}")


def draw_curves(path, rows):
    """Every step's numbers and the evaluations of one run, as an SVG."""
    charts = []
    for heading, (names, evaluation) in COLUMNS.items():
        sampled = []
        held_out = []
        for row in rows:
            if row["step"] > 0 and first_of(row, names) is not None:
                sampled.append((row["step"], first_of(row, names)))
            if row.get(evaluation) is not None:
                held_out.append((row["step"], row[evaluation]))
        series = {"sampled in training": [sampled], "held out, greedy": [held_out]}
        charts.append((heading, "step", series))
    line_charts(path, charts, "One run")


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
