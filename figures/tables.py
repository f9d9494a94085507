"""Long tables of metrics, and the result of a run."""

import shlex

from details.errors import printable
from details.flags import selected_by
from details.log import cells, number, say
from details.runs import write_best

# What the numbers of an evaluation are.
MEANING = {
    "eval/generation": "answers that are right",
    "eval/critique": "judgements that agree with the outcome",
    "eval/critique_p1": "right responses that are judged right",
    "eval/critique_p2": "wrong responses that are judged wrong",
    "eval/critique_precision": "responses judged right that are right",
    "eval/critique_sound": "wrong responses judged wrong for the right step",
    "eval/critique_unreadable": "critiques without a judgement",
    "eval/critique_truncated": "critiques that were truncated",
    "eval/self_critique": "judgements of its own answers that agree",
    "eval/revised": "right once what it judges wrong is corrected",
    "eval/t2": "second attempts that are right",
    "eval/delta": "second attempts minus answers",
    "eval/i_to_c": "wrong at first, then right",
    "eval/c_to_i": "right at first, then wrong",
    "eval/kept": "wrong answers that are given again",
    "eval/truncated": "attempts that were truncated",
    "eval/unclosed": "attempts that ended inside their thinking",
}


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


def log_answers(state, step, answers):
    """Keep which held-out questions were wrong at the start, and which of these are right now."""
    wrong = [sample.problem.question for sample in answers if not sample.right]
    if step == 0:
        state["missed"] = wrong
    state["gained"] = [question for question in state["missed"] if question not in wrong]


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


def finish_best(out, state, sampler):
    """Make OUT/best a plain model, if it holds adapters, and say which it is."""
    best = state["best"]
    if state["flags"]["lora"]:
        sampler.model.load_state_dict(best["adapters"], strict=False)
        write_best(out, sampler)
    what = selected_by(state["flags"]["method"])
    if state["selecting"]:
        what += " on --select-data"
    value = best["value"]
    values = f"{value:.3f}, {value - state['last']:+.3f} against the end"
    say(f"best: {out / 'best'}, step {best['step']}: {what} {values}")
    if not state["selecting"]:
        say("(the largest of several noisy numbers is too high; --select-data chooses by others)")
