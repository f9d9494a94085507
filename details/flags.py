"""The flags of train.py, and what settles them before any work is done."""

import argparse

from details.errors import InputError
from details.policy import TOY

SUPERVISED = ("star", "pair-sft")  # methods that learn texts as they stand, without advantages

# What differs on the toy: a tiny model on tiny problems learns faster.
TOY_FILES = {
    "data": f"{TOY}/train.jsonl",
    "eval_data": f"{TOY}/held_out.jsonl",
    "exam": f"{TOY}/exam.jsonl",
}
TOY_SETTINGS = {
    "steps": 30,
    "lr": 2e-4,
    "kl": 0.0,
    "max_new_tokens": 64,
    "eval_size": 512,
    "alpha": 2.0,
    "beta2": 0.25,
}

# {group: [(flag, default, help), ...]}. False: a switch. int, str: the type of a flag whose default
# depends on others.
FLAGS = {
    "what is run, and where": [
        ("method", "gc-rl", "what is trained, see the README"),
        ("model", "toy", "toy, a model folder or a hub id"),
        ("data", str, "JSONL file, gsm8k or mbpp [gsm8k; toy: its own]"),
        ("eval-data", str, "held-out: a file, humaneval (else --data's test set or last tenth)"),
        ("exam", str, "JSONL file of pairs, the critic's evaluation set (else sampled)"),
        ("select-data", str, "problems that choose OUT/best (else the held-out ones)"),
        ("grader", str, "FILE.py:function(row, response) -> bool, in place of answers or tests"),
        ("unsafe-code", False, "run programs without a sandbox, where the system has none"),
        ("cold-start", str, "JSONL file of demonstrations to be learned before RL"),
        ("cold-start-lr", 2e-5, "learning rate of the cold start (--lora: 10 times that)"),
        ("seed", 0, "of data order and sampling"),
        ("device", str, "cpu, cuda, cuda:1, mps (else cuda where there is one)"),
        ("precision", str, "compute dtype (else bf16 on cuda)"),
        (
            "out",
            "out",
            "folder of the run: model, run.html, metrics.jsonl, samples.jsonl, resume.pt",
        ),
        ("resume", False, "go on with the run in --out: the same command and this flag"),
        ("eval-every", 10, "steps between evaluations with a checkpoint; both also at the end"),
        ("eval-size", 256, "held-out problems, and pairs of the exam, in an evaluation"),
    ],
    "a step: sampling and learning": [
        ("steps", 200, "steps of RL (paper: 10 epochs)"),
        ("questions", 32, "questions a step (paper: 512)"),
        ("n", 8, "samples per prompt (paper: 5)"),
        ("updates", 4, "optimizer steps per rollout, whatever it holds (paper: 4)"),
        ("lr", 1e-6, "of AdamW, constant after a warm-up (paper: 1e-6; --lora: 10 times that)"),
        ("lora", 0, "rank of low-rank adapters, which are trained and not the weights (0: off)"),
        ("kl", 1e-3, "g-rl, c-rl, gc-rl: weight of the KL to the starting policy (paper: 1e-3)"),
        ("clip", 0.2, "the ratio is clipped to 1 - clip, 1 + clip (paper: 0.2)"),
        ("temperature", 1.0, "of sampling; the log-probs are those of this distribution"),
        ("max-new-tokens", 512, "of a completion; truncated ones count as wrong (paper: 4096)"),
    ],
    "GC-RL: pairs, rewards of critiques, groups": [
        (
            "balance",
            "filter",
            "pairs: filter: one right, one wrong; none: any two; reweight: these, paid by eq. 3",
        ),
        ("critique-data", str, "where pairs come from (else c-rl static, gc-rl dynamic)"),
        ("pairs", int, "pairs criticised, traces of pair-sft, a step (else --questions)"),
        ("cache", int, "size of the pair cache, >= --pairs; the oldest leave first (else twice)"),
        ("denoise", 0, "refined responses for each critique, eq. 4 (0: off; paper: 1)"),
        ("reward-right", 0.7, "for judging a right response right (eq. 5: 0.6, eq. 6: 0.8)"),
        ("reward-wrong", 0.7, "for judging a wrong response wrong (eq. 5: 0.8, eq. 6: 0.6)"),
        ("group", "prompt", "samples that share a baseline: a prompt's, a question's, the batch's"),
        ("no-std", False, "advantages are not divided by the group's standard deviation"),
    ],
    "SCoRe": [
        ("alpha", 10.0, "weight of the shaping alpha (r(y2) - r(y1)) in Stage II (paper: 10)"),
        ("beta1", 0.01, "KL weight on both attempts, of multi-turn too (paper: 0.01)"),
        ("beta2", 0.1, "KL weight on first attempts in Stage I, on top (paper: 0.1, 0.25)"),
        ("stage1-steps", int, "of --steps, those of Stage I (else half)"),
    ],
}
CHOICES = {
    "precision": ["fp32", "bf16"],
    "balance": ["filter", "reweight", "none"],
    "critique-data": ["static", "dynamic"],
    "group": ["prompt", "question", "batch"],
}

USED_BY = {  # {methods: the flags that no other method uses}
    "g-rl c-rl gc-rl score multi-turn star": "n",
    "g-rl c-rl gc-rl score multi-turn": "clip",
    "g-rl c-rl gc-rl": "kl group no_std",
    "c-rl gc-rl": "balance critique_data cache denoise reward_right reward_wrong",
    "c-rl gc-rl pair-sft": "pairs",
    "score multi-turn": "beta1",
    "score": "alpha beta2 stage1_steps",
}


def train_flags(argv, methods):
    """The command line of train.py; bad values end the program with one line. methods: names."""
    parser = argparse.ArgumentParser(
        description="Train a policy to answer, to criticise answers and to correct itself.",
        epilog=f"In [brackets]: the default. On the toy: {TOY_SETTINGS}. Methods: see README.md.",
    )
    parser.error = refuse
    choices = CHOICES | {"method": methods}
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, default, help in flags:
            if default is False:
                group.add_argument("--" + name, action="store_true", help=help)
                continue
            kind = type(default)
            if kind is type:
                kind = default
                default = None
            else:
                help += f" [{default}]"
            group.add_argument(
                "--" + name, default=default, type=kind, choices=choices.get(name), help=help
            )
    # The toy brings its files and settings as defaults: what is asked for by name still wins.
    known = parser.parse_args(argv)
    if known.model == "toy":
        parser.set_defaults(**TOY_SETTINGS)
        if not known.data:
            parser.set_defaults(**TOY_FILES)
    if known.lora:
        for name in ("lr", "cold_start_lr"):
            parser.set_defaults(**{name: 10 * parser.get_default(name)})
    args = parser.parse_args(argv)
    for users, names in USED_BY.items():
        if args.method in users.split():
            continue
        for name in names.split():
            if getattr(args, name) != parser.get_default(name):
                print(f"note: --{name.replace('_', '-')} is for {users}, not {args.method}")
    settle(args)
    return args


def refuse(message):
    raise InputError(message)


MAY_BE_ZERO = """steps lora kl clip seed denoise reward_right reward_wrong alpha beta1 beta2
stage1_steps"""


def settle(args):
    """Fill in what depends on other flags; refuse what cannot work before any work is done."""
    check_numbers(args)
    if (args.stage1_steps or 0) > args.steps:
        raise InputError(f"--stage1-steps {args.stage1_steps}: --steps is only {args.steps}")
    args.data = args.data or "gsm8k"
    args.pairs = args.pairs or args.questions
    # Small, since pairs should be the policy's own: so they wait less than a step on average.
    args.cache = max(args.cache or 2 * args.pairs, args.pairs)
    args.critique_data = args.critique_data or ("static" if args.method == "c-rl" else "dynamic")
    if args.n == 1 and args.group != "batch" and args.method not in SUPERVISED:
        raise InputError("--n 1: a sample needs others of its prompt to be compared with")
    # By themselves the constants of rewards make no difference: see reward.critique_reward.
    constants = args.balance == "reweight" or args.reward_right != 0.7 or args.reward_wrong != 0.7
    if (
        constants
        and "c-rl" in args.method
        and args.group == "prompt"
        and not args.no_std
        and not args.denoise
    ):
        print("note: --group prompt, divided by its std: constants of eqs. 3, 5 and 6 cancel")


def check_numbers(args):
    """Refuse numbers of a command line that are not above 0, or where 0 has a sense not at least 0;
    and those that are not finite, or too large for torch."""
    for name, value in vars(args).items():
        # Not isinstance: True is an int.
        if type(value) not in (int, float):
            continue
        may_be_zero = name in MAY_BE_ZERO.split()
        if not (0 < value < 2**31 or (may_be_zero and value == 0)):
            bound = "at least" if may_be_zero else "above"
            raise InputError(
                f"--{name.replace('_', '-')} {value}: must be {bound} 0 and below 2**31"
            )


def selected_by(method):
    """The metric of an evaluation by which a run's best model is chosen."""
    if method in ("score", "multi-turn", *SUPERVISED):
        return "eval/t2"
    return "eval/critique" if method == "c-rl" else "eval/generation"


def largest_kl(args):
    """The largest weight that a KL to the starting policy has in the run; 0: it has none."""
    if args.method in SUPERVISED:
        return 0.0
    weights = {"score": args.beta1 + args.beta2, "multi-turn": args.beta1}
    return weights.get(args.method, args.kl)
