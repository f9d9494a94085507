"""A policy at work: it answers a question, criticises the answer, corrects it.

python sample.py "Compute 7-6+4+8 modulo 10."  answer, critiques, corrections
python sample.py --explain "Compute ..."       a step of GC-RL in slow motion
python sample.py --model out --eval --json     a run on its held-out problems
"""

import argparse
import json
import re
from pathlib import Path

from critique import correct_prompt, solve_prompt
from details.answers import answer_key
from details.data import (
    kind_of,
    load_problems,
    mean,
    read_jsonl,
    read_some,
    run_command,
    seed_of,
    to_pair,
)
from details.errors import InputError, printable
from details.flags import check_numbers, refuse
from details.log import truncation
from details.policy import TOY
from details.start import check_judges, check_lengths, sample_pairs, set_judges
from figures.explain import explain, problem_of
from figures.tables import print_table
from reward import Pair, Problem
from rollout import Sampler, criticise, load_policy, refine, two_attempts
from toy.sound import soundness

JUDGED = {True: "right", False: "wrong", None: "nothing that can be read"}


def shown(sample):
    end = "" if sample.stopped else "\n(unfinished: a larger --max-new-tokens may help)"
    return printable(sample.text) + end


def show_question(sampler, problem, n, seed):
    """Print an answer, n critiques and their judgements, and what is answered in the end: the
    answer, or the corrected one if its greedy critique calls it wrong."""
    # The answer is greedy; its critiques are drawn, so that they differ.
    greedy = sampler.greedy()
    question = problem.question
    chat = solve_prompt(question, problem.program)
    [answer] = greedy.complete([chat], 1, seed=0)
    print(f"QUESTION\n{printable(question)}\n\nANSWER\n{shown(answer)}")
    # Whether the answer is right is not known here: `right` is not used.
    pair = Pair(problem, answer.text, right=False)
    critiques = criticise(sampler, [pair], n, seed)
    # They need not agree: each is a sample.
    for number, critique in enumerate(critiques, 1):
        print(f"\nCRITIQUE {number} says: {JUDGED[critique.says_right]}\n{shown(critique)}")
    # The first critique that finds fault, else the first.
    chosen = next((i for i, c in enumerate(critiques) if c.says_right is False), 0)
    [deciding] = criticise(greedy, [pair], 1, seed)
    # Corrections with that critique, without any, and with the greedy critique: in one batch, which
    # takes little longer than one of them.
    texts = critiques[chosen].text, None, deciding.text
    chats = [correct_prompt(question, answer.text, text, problem.program) for text in texts]
    helped, unaided, revised = greedy.complete(chats, 1, seed=0)
    print(f"\nCORRECTED, with critique {chosen + 1}\n{shown(helped)}")
    print(f"\nCORRECTED, without a critique\n{shown(unaided)}")
    # Selective revision, as in PAG (arXiv 2506.10406): correct only what is judged wrong.
    final = revised if deciding.says_right is False else answer
    print(f"\nFINAL ANSWER: the greedy critique says {JUDGED[deciding.says_right]}")
    print(shown(final))


# ------------------------------------------------------------------------------------ evaluation


def evaluate(sampler, problems, exam):
    """Greedy evaluation on held-out problems (answers, second attempts) and on the exam, the pairs
    of the critic's evaluation set: a dict of eval/... numbers, and the answers as Samples."""
    sampler = sampler.greedy()
    first, second = two_attempts(sampler, problems, 1, seed=0)
    critiques = criticise(sampler, exam, 1, seed=0)
    attempts = attempts_table(first, second)
    judgements = judgement_table(critiques)
    # Selective revision: it criticises its own answers, and corrects those that it judges wrong.
    own = criticise(sampler, pairs_of(first), 1, seed=0)
    doubted = [critique for critique in own if critique.says_right is False]
    trusted_right = [critique.pair.right for critique in own if critique.says_right is not False]
    refined = refine(sampler, doubted, 1, seed=0)
    numbers = {
        "eval/generation": attempts["t1"],
        "eval/critique": judgements.pop("accuracy"),
        "eval/size": len(problems),
        "eval/pairs": len(exam),
        "eval/revised": mean(trusted_right + [sample.right for sample in refined]),
        "eval/self_critique": judgement_table(own)["accuracy"],
    }
    for name, value in attempts.items():
        numbers[f"eval/{name}"] = value
    for name, value in judgements.items():
        numbers[f"eval/critique_{name}"] = value
    return numbers, first


def pairs_of(responses):
    """Truncated responses too, unlike in training: here no answer is left unjudged."""
    return [Pair(sample.problem, sample.text, sample.right) for sample in responses]


def pass_at_n(responses, n):
    """The share of the questions to which at least one of the n responses is right: if it is far
    above their accuracy, RL has something to lift."""
    groups = [responses[start : start + n] for start in range(0, len(responses), n)]
    return mean(any(sample.right for sample in group) for group in groups)


def judgement_table(critiques):
    """What critiques say against what is so. accuracy: the share of judgements that agree with the
    outcome; p1, p2: the same on right and on wrong responses; precision and recall of "right";
    unreadable: the share without a judgement that can be read, truncated ones among them; on the
    toy, sound: see toy/sound.py."""
    on_right = [critique.says_right for critique in critiques if critique.pair.right]
    on_wrong = [critique.says_right for critique in critiques if not critique.pair.right]
    # p1, the share of right responses that are judged right, is the recall of "right" as well.
    p1 = mean(says_right is True for says_right in on_right)
    return {
        "accuracy": mean(c.says_right is c.pair.right for c in critiques),
        "p1": p1,
        "p2": mean(says_right is False for says_right in on_wrong),
        "precision": mean(c.pair.right for c in critiques if c.says_right),
        "recall": p1,
        "unreadable": mean(c.says_right is None for c in critiques),
        **truncation(critiques),
        **soundness(critiques),
    }


def attempts_table(first, second):
    """SCoRe's metrics of two lists of Samples: accuracies t1 and t2, their difference, the shares
    of problems that went from incorrect to correct and back. And the collapse: the share of second
    attempts that repeat the first verbatim (`unchanged`), and of the wrong first answers that
    the second attempt gives again, in whatever words (`kept`)."""
    # A problem's two attempts belong together.
    both = list(zip(first, second))
    # Answers can be compared, programs cannot.
    wrong_first = [(a, b) for a, b in both if not a.right and a.problem.program is False]
    t1 = mean(a.right for a in first)
    t2 = mean(b.right for b in second)
    return {
        "t1": t1,
        "t2": t2,
        "delta": t2 - t1,
        # Incorrect to correct, and the reverse.
        "i_to_c": mean(b.right and not a.right for a, b in both),
        "c_to_i": mean(a.right and not b.right for a, b in both),
        "unchanged": mean(a.text == b.text for a, b in both),
        "kept": mean(same_answer(a, b) for a, b in wrong_first),
    } | truncation(first + second)


def same_answer(a, b):
    """Do two attempts that ended by themselves give one answer?"""
    # A truncated one has no answer to give again.
    ended = a.stopped and b.stopped
    # Compared as answers and not as texts: 0.5 and 1/2 are the same.
    answer = answer_key(a.text)
    return ended and answer is not None and answer == answer_key(b.text)


# --------------------------------------------------------------------------- the command line


def use(argv):
    """Do what the flags ask for; returns the numbers of --eval."""
    args = parse_args(argv)
    # All input is read and refused before the model is loaded.
    folder = TOY if args.model == "toy" else Path(args.model)
    problems = exam = []
    set_judges(args)
    # A run's folder knows by what its responses are judged, how long completions may be, and its
    # --precision, if it was named.
    flags = run_flags(folder)
    if (args.eval or args.explain) and flags.get("grader") and not args.grader:
        raise InputError(f"{folder}: a grader judged its responses: give --grader, it or another")
    if args.explain:
        problem = problem_of(args, folder)
        check_judges([problem])
    if args.eval:
        problems, exam = held_out_and_exam(args, folder)
        check_judges(problems)
    model, tokenizer = load_policy(
        args.model,
        args.device,
        args.precision or flags.get("precision"),
    )
    sampler = Sampler(
        model,
        tokenizer,
        args.max_new_tokens or flags.get("max_new_tokens", 512),
        args.temperature,
    )
    # A question that leaves no room for an answer is refused before anything is sampled.
    asked = asked_problem(args, folder, flags)
    check_lengths(sampler, [*problems, asked])
    # What --eval finds, for main's caller.
    numbers = {}
    if args.explain:
        explain(sampler, problem, args.n, args.seed)
    elif args.question:
        show_question(sampler, asked, args.n, args.seed)
    if args.eval:
        if not exam:
            # Its own responses, so two policies get different sets.
            exam = sample_pairs(sampler, problems, 8, len(problems), seed_of(args.seed, "exam"))
        numbers, _ = evaluate(sampler, problems, exam)
        print_table(str(args.data or folder), {args.model: numbers})
        if args.json:
            print(json.dumps(numbers))
    return numbers


def parse_args(argv):
    """The command line of sample.py."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse
    add = parser.add_argument
    add("question", nargs="?", help="a question to answer")
    add("--model", default="toy", help="toy, a run's folder, a model folder or a hub id [toy]")
    add("--explain", action="store_true", help="a step of GC-RL on the question in slow motion")
    add("--answer", help="the right answer, for --explain [that of MODEL's data files]")
    add("--eval", action="store_true", help="evaluate: answers, second attempts, critiques")
    add("--data", help="JSONL file, gsm8k, mbpp or humaneval [MODEL/held_out.jsonl]")
    add("--exam", help="JSONL file of critique pairs for --eval [MODEL's own; of --data: sampled]")
    add("--grader", help="FILE.py:function that judges responses, as that of train.py")
    add("--unsafe-code", action="store_true", help="run programs without a sandbox")
    add("--size", type=int, help="use the first N problems", metavar="N")
    add("--n", type=int, help="critiques of a question [4]; samples per prompt of --explain [8]")
    add("--temperature", type=float, default=1.0, help="of what is sampled [1.0]")
    add("--max-new-tokens", type=int, help="of a completion [those of the run, else 512]")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda, mps [cuda where there is one]")
    add("--precision", choices=["fp32", "bf16"], help="compute dtype [the run's --precision]")
    add("--json", action="store_true", help="the numbers as one JSON object on the last line")
    args = parser.parse_args(argv)
    check_numbers(args)
    args.n = args.n or (8 if args.explain else 4)
    # Without this the program would load a model and say nothing.
    if not args.question and (args.explain or not args.eval):
        raise InputError("give a question; --eval alone needs none (see --help)")
    if args.answer and not args.explain:
        raise InputError("--answer is for --explain")
    if not args.eval and (args.data or args.exam or args.size or args.json):
        raise InputError("--data, --exam, --size and --json are for --eval")
    # What the terminal could not decode, no tokenizer takes.
    if re.search("[\ud800-\udfff]", f"{args.question} {args.answer}"):
        raise InputError("the question or the answer is not UTF-8")
    return args


def run_flags(folder):
    """The flags of the run that made a model folder; none if no run made it."""
    path = folder / "run.json"
    return read_jsonl(path, dict)[0] if path.exists() else {}


def held_out_and_exam(args, folder):
    """The problems of --eval and the critic's evaluation set: named by flags, else those that the
    folder holds. The set is empty if there is none; the caller then samples one."""
    if not args.data and not (folder / "held_out.jsonl").exists():
        raise InputError(f"{folder} has no held_out.jsonl: name the problems by --data FILE")
    problems = load_problems(args.data or folder / "held_out.jsonl", "test")[: args.size]
    pairs = []
    if args.exam:
        pairs = read_jsonl(args.exam, to_pair)
    elif not args.data:
        # A run keeps its exam beside its model.
        pairs = read_some(folder / "exam.jsonl", to_pair)
    return problems, pairs


def asked_problem(args, folder, flags):
    """The question of the command line; it asks for what the run's problems ask for."""
    # An answer, unless a run says something else.
    program = False
    held_out = folder / "held_out.jsonl"
    if args.grader or flags.get("grader"):
        program = None
    elif held_out.exists():
        program = read_jsonl(held_out, kind_of)[0]
    return Problem(args.question or "", program=program)


def main(argv=None):
    """The command line; returns the numbers of --eval, for a notebook."""
    return run_command(use, argv)


if __name__ == "__main__":
    main()
