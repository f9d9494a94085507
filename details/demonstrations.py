"""Demonstrations for a cold start: questions with a response, a critique of it, or both."""

from critique import critique_prompt, judgement, solve_prompt
from details.data import kind_of, read_jsonl, text_field, with_tests, without


def load_demonstrations(path, held_out):
    """[(chat messages, completion)] from a JSONL file with question, response and optionally
    critique and label; those on questions that are `held_out` are left out.

    A response labelled wrong is shown to the critic only, never as a demonstration of solving; nor
    is that of a row with "critique_only": true. A critique must end in a judgement that agrees
    with the label. Raises InputError with the line.
    """
    rows = without(held_out, path, read_jsonl(path, to_examples), lambda row: row[0])
    return [example for _, examples in rows for example in examples]


LABELS = {"none": None, "right": True, "wrong": False, "true": True, "false": False}


def to_examples(row):
    """(question, [(chat messages, completion), ...]) of a JSON object."""
    program = kind_of(row)
    question = text_field(row, "question")
    if program:
        question = with_tests(question, row)
    response = text_field(row, "response")
    label = str(row.get("label")).lower()
    if label not in LABELS:
        raise ValueError(f"label {label!r}: must be right, wrong, true or false")
    is_right = LABELS[label]
    critique_only = row.get("critique_only", False)
    if not isinstance(critique_only, bool):
        raise ValueError("field 'critique_only' must be true or false")
    examples = []
    if row.get("critique") is not None:
        text = text_field(row, "critique")
        says_right = judgement(text)
        if says_right is None:
            raise ValueError("the critique has no line `Conclusion: right` or `... wrong`")
        if is_right is not None and says_right != is_right:
            raise ValueError("the critique's conclusion contradicts the label")
        is_right = says_right
        examples.append((critique_prompt(question, response), text))
    if is_right is not False and not critique_only:
        examples.append((solve_prompt(question, program), response))
    if not examples:
        raise ValueError("nothing to learn: not a right response, and no critique of it")
    return question, examples
