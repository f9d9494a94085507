"""The prompts - solve, critique, correct - and the reading of a critique's judgement.

A prompt is a list of chat messages; `rollout.encode_chat` turns it into tokens. The first-order rollout samples from
`solve`, the second-order rollout from `critique`; `correct` asks for a refined response, with a critique (the denoised
reward, eq. 4 of arXiv 2602.22765) or without any hint (the second attempt of SCoRe, arXiv 2409.12917).

    python critique.py             print the prompts for one problem
"""
import re

SOLVE = "{question}\nSolve it step by step. Put the final answer in \\boxed{{}}."

CRITIQUE = ("Problem: {question}\n\nSolution:\n{response}\n\n"
            "Check the solution step by step. End with the line Conclusion: right or the line Conclusion: wrong.")

# SCoRe's instruction p1: there may be an error; no word on whether or where (the paper: no feedback, no oracle).
REWRITE = "Write the full solution again, corrected. Put the final answer in \\boxed{{}}."
CORRECT = "There may be an error above. " + REWRITE
CORRECT_WITH = "A critique of the solution above:\n{critique}\n\n" + REWRITE


def solve(question):
    """Chat messages that ask for a response to the question."""
    return [{"role": "user", "content": SOLVE.format(question=question)}]


def critique(question, response):
    """Chat messages that ask for a critique of a response.

    One user message: the critic is shown the response as somebody's text, not as its own turn, which it would defend.
    """
    return [{"role": "user", "content": CRITIQUE.format(question=question, response=response)}]


def correct(question, response, critique=None):
    """Chat messages that ask for a refined response: the real conversation, and a critique to go by where given."""
    request = (CORRECT if critique is None else CORRECT_WITH).format(critique=critique)
    return solve(question) + [{"role": "assistant", "content": response}, {"role": "user", "content": request}]


# Between the word and its value only markup and punctuation may stand, and a LaTeX or filler word or two: so
# `**Conclusion:** right`, `Conclusion - \boxed{\text{Wrong}}.` and `## Conclusion\nThe solution is right, as shown` are
# read. A choice that is only repeated (`right or wrong`, `right|wrong`) is none. Repetitions are bounded: linear time.
JUDGEMENT = re.compile(r"conclusion(?:[\W_]{1,24}(?:boxed|text|textbf|mathrm|is|the (?:solution|response|answer) is)){0,2}[\W_]{1,24}"
                       r"(right|wrong)(?![a-z])(?![ ,*_`(]{0,4}(?:-?(?:or|and)-?|[|/-])[ *_`]{0,4}(?:right|wrong))", re.IGNORECASE)


def judgement(text):
    """The last judgement of a critique: True (right), False (wrong), None (none that can be read)."""
    found = None
    for found in JUDGEMENT.finditer(text):
        pass
    return None if found is None else found[1].lower() == "right"


if __name__ == "__main__":
    problem, response = "Compute 3*4+5 modulo 10.", "3*4=2\n2+5=8\n\\boxed{8}"
    check = "3*4=2 ok\n2+5=7 no\nConclusion: wrong"
    for title, messages in [("solve", solve(problem)), ("critique", critique(problem, response)),
                            ("correct with a critique (eq. 4)", correct(problem, response, check)),
                            ("correct without (SCoRe)", correct(problem, response))]:
        print(f"=== {title}")
        for message in messages:
            print(f"[{message['role']}]\n{message['content']}\n")
    print(f"=== the judgement of {check!r}: {judgement(check)}")
