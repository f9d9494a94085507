"""samples.jsonl: what was said, what it earned, and what was learned of each of its tokens.

A line is a completion; details/README.md says what its fields are. Lines are added as the run goes
on; where a run that goes on does steps again, runs.py cuts the file. figures/page.py shows them.
"""

import json
from collections import defaultdict
from pathlib import Path

from details.data import write_jsonl
from details.errors import InputError, printable
from details.log import say
from rollout import criticise, two_attempts
from sample import pairs_of, same_answer
from toy.sound import first_objection, first_wrong, is_sound

ROOM = 25_000  # bytes of samples.jsonl for each step, on average
PROBES = 8  # held-out questions that each evaluation asks
LISTED = 64  # questions of a step whose outcomes are listed
FIRST = ("response", "attempt 1")  # roles that answer a question


def log_samples(out, state, tokenizer, step, samples, show):
    """Adds what became of a step's questions, and all completions of some of them: as many whole
    questions as there is room for. show: of at least one, of which a chain is printed too."""
    questions = defaultdict(list)
    for sample in samples:
        questions[sample.problem].append(sample)
    # First those where responses can be learned from, and critiques of them too.
    groups = sorted(questions.values(), key=roles_learned, reverse=True)
    if show:
        show_chain(choose_chain(groups[0]))
    append(out, state, [{"step": step, "role": "outcomes", "questions": outcomes(questions)}])
    names = {id(sample): f"{step}.{index}" for index, sample in enumerate(samples)}
    for group in groups:
        rows = rows_of(tokenizer, step, group, names)
        if not show and state["samples"] + len(json.dumps(rows)) > step * ROOM:
            break
        append(out, state, rows)
        show = False


def log_probes(out, state, sampler, step):
    """Adds what the policy says to the questions that every evaluation asks: an answer, a second
    attempt, a critique. The random numbers are the same each time: what differs is the policy."""
    first, second = two_attempts(sampler, state["held_out"][:PROBES], 1, seed=0)
    samples = first + second + criticise(sampler, pairs_of(first), 1, seed=2)
    names = {id(sample): f"{step}.probe.{index}" for index, sample in enumerate(samples)}
    rows = rows_of(sampler.tokenizer, step, samples, names)
    append(out, state, [{"probe": True} | row for row in rows])


def append(out, state, rows):
    """state["samples"]: how many bytes the file has, for a run that goes on."""
    path = out / "samples.jsonl"
    write_jsonl(path, rows, "a")
    state["samples"] = path.stat().st_size


def roles_learned(group):
    return len({sample.role for sample in group if sample.advantage != 0})


def outcomes(questions):
    """[[question, "rrwt"], ...]: which of its responses are right, wrong, truncated. The data
    filter keeps a pair where both r and w are there."""
    found = []
    for problem, group in questions.items():
        letters = ""
        for sample in group:
            if sample.role in FIRST:
                letters += ("r" if sample.right else "w") if sample.stopped else "t"
        if letters:
            found.append([problem.question[:80], letters])
    return found[:LISTED]


def rows_of(tokenizer, step, samples, names):
    """Rows of samples that belong together. names: {id(sample): its name}."""
    responses = {(s.problem, s.text): names[id(s)] for s in samples if s.role in FIRST}
    rows = []
    shown = set()
    for sample in samples:
        row = {"step": step, "id": names[id(sample)], "parent": names.get(id(sample.first))}
        if sample.pair:
            parent = responses.get((sample.problem, sample.pair.response))
            row |= {"parent": parent, "response_right": sample.pair.right}
            if parent is None:  # a pair of an earlier step, or a static one
                row["response"] = sample.pair.response
        row |= sample_row(tokenizer, sample) | reason_row(sample)
        # Prompts that differ by the parent's text alone: one is an example of all.
        key = sample.role if row["parent"] else tuple(sample.prompt)
        if key in shown:
            del row["prompt"]
        shown.add(key)
        rows.append(row)
    return rows


def sample_row(tokenizer, sample):
    """A sample by itself."""
    clipped = sample.clipped
    return {
        "role": sample.role,
        "question": sample.problem.question,
        "prompt": tokenizer.decode(sample.prompt),
        "completion": sample.text,
        "tokens": token_texts(tokenizer, sample.tokens),
        "logprobs": rounded(sample.logprobs),
        "log_ratios": rounded(sample.log_ratios),
        "clipped": clipped and [index for index, cut in enumerate(clipped) if cut],
        "stopped": sample.stopped,
        "right": sample.right,
        "says_right": sample.says_right,
        "reward": round(sample.reward, 4),
        "advantage": round(sample.advantage, 4),
    }


def reason_row(sample):
    """What can be told about how it came to its end: lines are counted from 0."""
    question = sample.problem.question
    row = {}
    if sample.role != "critique":
        wrong = first_wrong(question, sample.text)
        if wrong is not None:
            row["wrong_line"] = wrong
    elif sample.says_right is False:
        line = first_objection(sample.text)
        if line is not None:
            row["no_line"] = line
            right = sample.pair.right
            row["sound"] = not right and is_sound(question, sample.pair.response, sample.text)
    # Answers can be compared, programs cannot.
    if sample.first and sample.problem.program is False:
        row["again"] = same_answer(sample.first, sample)
    return row


def rounded(values):
    return values and [round(value, 3) + 0.0 for value in values]  # no -0.0


def token_texts(tokenizer, tokens):
    """The text of each token. Of a character that several tokens make up, the last has it."""
    texts = []
    known = {}
    start = 0
    for end in range(1, len(tokens) + 1):
        part = tuple(tokens[start:end])
        if part not in known:
            known[part] = tokenizer.decode(part, clean_up_tokenization_spaces=False)
        text = known[part]
        if "\ufffd" in text and len(part) < 4:
            texts.append("")
            continue
        # SentencePiece writes a space as a mark, which is lost at the beginning of a text.
        piece = tokenizer.convert_ids_to_tokens(part[0]) or ""
        spaced = piece.startswith("\u2581") and not text.startswith(" ")
        texts.append(" " + text if spaced else text)
        start = end
    return texts


def show_chain(chain):
    """Prints samples that belong together, and the question."""
    say(f"--- {printable(chain[0].problem.question)}")
    if chain[0].role == "critique":  # of a pair from an earlier step
        pair = chain[0].pair
        outcome = "right" if pair.right else "wrong"
        say(f"[response, {outcome}]\n{printable(pair.response)}")
    for sample in chain:
        say(f"[{describe(sample)}]\n{printable(sample.text)}")


def choose_chain(samples):
    """Samples that belong together, if possible some that something can be learned from."""
    responses = {(s.problem, s.text): s for s in samples if s.role in FIRST}
    ordered = sorted(samples, key=lambda s: (s.role != "critique", s.advantage == 0))
    for sample in ordered:
        before = sample.first
        if sample.pair:
            before = responses.get((sample.problem, sample.pair.response))
        if before in samples:
            return [before, sample]
    return ordered[:1]


def describe(sample):
    """What a sample is worth, as in `critique says wrong, reward 0.7, advantage +0.77`."""
    if sample.role == "critique":
        what = {True: "says right", False: "says wrong", None: "says nothing"}[sample.says_right]
    else:
        what = "is right" if sample.right else "is wrong"
    return f"{sample.role} {what}, reward {sample.reward:g}, advantage {sample.advantage:+.2f}"


def not_finite(out, tokenizer, norm, samples):
    """The error for a gradient that is not finite; the mini-batch that gave it is written down."""
    path = Path(out) / "not_finite.jsonl"
    write_jsonl(path, [sample_row(tokenizer, sample) for sample in samples])
    return InputError(f"the gradient norm is {norm}; try a new run with a smaller --lr; see {path}")
