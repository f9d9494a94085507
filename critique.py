"""The prompts - solve, criticise, correct - and the judgement in a critique.

A prompt is a list of chat messages; `encode_chat`, in details/policy.py, turns it into tokens. The
first-order rollout samples after `solve_prompt`, the second-order rollout after `critique_prompt`.
`correct_prompt` asks for a refined response, with a critique (the denoising reward, eq. 4 of arXiv
2602.22765) or without any hint (the second attempt of SCoRe, arXiv 2409.12917).
"""

import re

# What is added to the question; the keys are `Problem.program`. False: an answer, best in a box.
# True: a program, which is run. None, where the user's grader judges: nothing.
SOLVE = {
    False: "\nSolve it step by step. Put the final answer in \\boxed{}.",
    True: "\nWrite the function in Python, in one block that begins with ```python.",
    None: "",
}

# What it asks for at the end is read by `judgement`.
CRITIQUE = (
    "Problem: {question}\n\nSolution:\n{response}\n\nCheck the solution step by step. "
    "End with the line Conclusion: right or the line Conclusion: wrong."
)

# SCoRe's instruction: it says neither whether there is an error nor where.
CORRECT = "There may be an error above. "
CORRECT_WITH = "A critique of the solution above:\n{critique}\n\n"
REWRITE = {
    False: "Write the full solution again, corrected. Put the final answer in \\boxed{}.",
    True: "Write the function again, corrected, in one block that begins with ```python.",
    None: "Write the full solution again, corrected.",
}


def solve_prompt(question, program=False):
    """Chat messages that ask for a response to the question. program: True asks for a program,
    False for an answer in a box, None as the question stands."""
    return [{"role": "user", "content": question + SOLVE[program]}]


def critique_prompt(question, response):
    """Chat messages that ask for a critique of a response.

    One user message: the critic is shown the response as somebody's text, not as its own turn,
    which it might defend.
    """
    return [{"role": "user", "content": CRITIQUE.format(question=question, response=response)}]


def correct_prompt(question, response, critique=None, program=False):
    """Chat messages that ask for a refined response: the conversation so far, in which the response
    is the policy's own turn, and the request, with a critique if there is one. program: as in
    `solve_prompt`."""
    template = CORRECT if critique is None else CORRECT_WITH
    request = template.format(critique=critique) + REWRITE[program]
    return [
        *solve_prompt(question, program),
        {"role": "assistant", "content": response},
        {"role": "user", "content": request},
    ]


# The judgement is the last thing on its line:
#     read        **Conclusion:** Right. [END]        3+4 is 7. Conclusion: wrong
#     ignored     > Conclusion: right                 so the conclusion: right or wrong?
# The word `conclusion` is needed, marks around it are tolerated. Readers may skip the pattern. Its
# repetitions are bounded, so that reading a text takes linear time.
JUDGEMENT = re.compile(
    r"""
    ^ (?! [ \t]{0,20} [>"'“] )      # no quotation
    (?: [^\n]{0,9999} [.!?。] )?    # sentences, or a number, before it:   It is 5. or  1.
    [ \t*_#`\-]{0,20}               # markup that may open it:             **  or  ##  or  -
    conclusion
    [\s*_:：`$\-]{1,20}             # what stands between:                 :** or  a new line
    (?:\\boxed\{)? (?:\\text\{)?    # LaTeX around the word:               $\boxed{\text{right}}$
    (right|wrong)
    [ \t*_.。!`}$]{0,20}            # markup that may close it:            .** or  }}
    (?: [\[<(] [/|]{0,2} (?:(?:im_)?end(?:[ _]?of[ _]?\w{1,20})?|eos|s) \|? [\])>] [ \t*_.]{0,9} )?
                                    # an end mark:                         [END]
    \r? $
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)


def judgement(text):
    """The last judgement in a critique: True (right), False (wrong), None (none can be read)."""
    found = JUDGEMENT.findall(text)
    if not found:
        return None
    return found[-1].lower() == "right"
