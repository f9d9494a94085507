"""Does TRL train what the project trains? Four rollouts of each method on the toy, compared.

    python -m scale.check        on the CPU, by one process, then by two; about three minutes

At each rollout the project's own recipe (train.METHODS) runs too, with a sampler that hands out the
completions that TRL has drawn: the recipe must ask for TRL's prompts, and find TRL's rewards. At
each optimizer step the project's gradient (train.accumulate) is computed for TRL's mini-batch, and
compared with the one that TRL is about to apply.
"""

import hashlib
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict, deque

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, TrainerCallback

import rollout
import train
from critique import solve
from details.data import InputError, from_problem, load_problems, seed_of, write_jsonl
from details.fast import micro_batches
from details.runs import Meter
from reward import PairCache, advantages, leave_one_out
from rollout import Episode, Policy, Sample, encode_chat, load_policy, logprobs
from scale import trl_gcrl, trl_score

N = 8  # completions of a prompt
UPDATES = 2  # optimizer steps a rollout
ROLLOUTS = 4
PARTS = 2  # micro-batches of an optimizer step
ROWS = 128  # of a process in a rollout

# Settings by which much moves in four rollouts, so that the clip and the KL have something to do.
COMMON = {
    "num_generations": N,
    "steps_per_generation": UPDATES * PARTS,
    "gradient_accumulation_steps": PARTS,
    "max_steps": ROLLOUTS * UPDATES,
    "per_device_train_batch_size": ROWS // (UPDATES * PARTS),
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "beta": 0.05,
    "max_grad_norm": 0,  # the gradient as it is
    "gradient_checkpointing": False,
    "ddp_find_unused_parameters": False,
    "logging_steps": 1000,
    "disable_tqdm": True,
}
# The limit is one by which a few completions are cut.
PROGRAMS = {
    "g-rl": (trl_gcrl, {"method": "g-rl", "max_completion_length": 24}),
    "c-rl": (
        trl_gcrl,
        {"method": "c-rl", "max_completion_length": 36, "data": "toy/exam.jsonl"},
    ),
    "gc-rl": (trl_gcrl, {"method": "gc-rl", "max_completion_length": 32}),
    "score": (trl_score, {"max_completion_length": 26, "alpha": 2.0, "beta2": 0.25}),
}
# The same for the project. Half of the rollouts are Stage I.
FLAGS = f"--n {N} --kl 0.05 --beta1 0.05 --alpha 2 --beta2 0.25 --stage1-steps {ROLLOUTS // 2}"

REFUSED = [
    (trl_gcrl, "--per_device_train_batch_size 10"),
    (trl_gcrl, "--use_bias_correction_kl true"),
    (trl_gcrl, "--method c-rl"),
    (trl_score, "--per_device_train_batch_size 10"),
    (trl_score, "--beta 0"),
]


def start(method, folder, **more):
    """A trainer as its program builds it."""
    program, settings = PROGRAMS[method]
    argv = ["--out", folder]
    for name, value in (COMMON | settings | more).items():
        argv += [f"--{name}", str(value)]
    trainer = program.build(argv)
    trainer.remove_callback(PrinterCallback)
    # The bound on the reference: so small that it acts; trl_gcrl.py has none.
    train.MAX_AWAY = trl_score.MAX_AWAY = 0.05 if method == "score" else 1e9
    return trainer


class Compared(TrainerCallback):
    """One run, watched from its rollouts to its gradients."""

    def __init__(self, method, trainer):
        self.method = method
        self.trainer = trainer
        self.policy = Policy(*load_policy("toy"), limit=0)
        self.reference, _ = load_policy("toy")
        self.cache = PairCache(maxlen=ROWS // N)
        self.counts = Counter()
        self.batch = []  # the Episodes of an optimizer step
        self.ratios = []  # TRL's advantages, divided by the project's
        self.rounding = [0.0]  # TRL's where the project's are zero
        self.differences = []  # of gradients, relative
        # The trainer goes on as before, and is listened to.
        self.rollout_func = trainer.rollout_func
        self.score_rows = trainer._generate_and_score_completions
        self.compute_loss = trainer._compute_loss
        trainer.rollout_func = self.after_rollout
        trainer._generate_and_score_completions = self.after_scoring
        trainer._compute_loss = self.before_loss
        trainer.add_callback(self)

    # ------------------------------------------------------------------------ prompts and rewards

    def after_rollout(self, chats, trainer):
        step = trainer.state.global_step // UPDATES + 1
        if self.method == "gc-rl":
            # The pairs are drawn at random, here by the numbers of train.pairs_to_criticise.
            self.rollout_func.rng = random.Random(seed_of(0, step, "pairs"))
        output = self.rollout_func(chats, trainer)
        self.counts["broken groups"] += chats != [chats[i // N * N] for i in range(len(chats))]

        # TRL's completions as the project's Samples, scored by the policy that has drawn them.
        model = self.policy.model
        model.load_state_dict(trainer.model.state_dict())
        stops = model.generation_config.eos_token_id
        samples = []
        for prompt, tokens in zip(output["prompt_ids"], output["completion_ids"]):
            samples.append(Sample(prompt, tokens, [], stopped=tokens[-1] in stops))
        with torch.no_grad():
            for sample, row in zip(samples, logprobs(model, samples)):
                sample.logprobs = row.tolist()

        self.episodes = self.replayed(step, chats, samples)
        for place, e in enumerate(self.episodes):
            self.counts["rows"] += 1
            self.counts["cut"] += not e.sample.stopped
            self.counts["rewards"] += e.reward == output["reward"][place]
        return output

    def replayed(self, step, chats, samples):
        """The Episodes that the project makes of the samples, in TRL's order."""
        waiting = defaultdict(deque)  # {prompt: the places of its samples}
        for place, sample in enumerate(samples):
            waiting[tuple(sample.prompt)].append(place)
        asked = []  # the places of samples in the order in which the recipe asks for them

        def hand_out(model, prompts, n, *_, **__):
            places = [waiting[tuple(prompt)].popleft() for prompt in prompts for _ in range(n)]
            asked.extend(places)
            return [samples[place] for place in places]

        known = self.trainer.problems if self.method == "score" else self.rollout_func.items
        items = [known[chat[0]["content"]] for chat in chats]
        half = len(chats) // 2
        problems = items[::N]
        cache = self.cache
        if self.method in ("gc-rl", "score"):
            problems = items[:half:N]
        if self.method == "c-rl":
            cache = PairCache(problems)  # these are pairs
        pairs = len(chats) if self.method == "c-rl" else half
        flags = f"--method {self.method} --pairs {pairs // N} {FLAGS}"
        args = train.parse_args(flags.split())
        generate = rollout.generate
        rollout.generate = hand_out
        recipe = train.METHODS[self.method]
        episodes, _ = recipe(args, self.policy, step, problems, cache, [])
        rollout.generate = generate

        rows = {}
        for e in episodes:
            # By identity: two samples may have the same tokens.
            [place] = [place for place in asked if samples[place] is e.sample]
            rows[place] = e
        self.counts["prompts"] += len(rows)
        # Of gc-rl: rows without a pair have kept their question.
        for place in set(range(len(chats))) - set(rows):
            prompt = encode_chat(self.policy.tokenizer, solve(items[place].question))
            text, _ = rollout.decode(self.policy.tokenizer, samples[place])
            e = rollout.answered(items[place], samples[place], text, "response")
            e.reward = train.outcome_reward(e)
            e.group = (e.problem.question, "in place of critiques")
            e.kl = args.kl
            rows[place] = e
            self.counts["prompts"] += prompt == e.sample.prompt
            self.counts["more responses"] += 1
        return [rows[place] for place in range(len(chats))]

    # --------------------------------------------------------------------- advantages, gradients

    def after_scoring(self, inputs):
        output = self.score_rows(inputs)
        # SCoRe compares across processes.
        everywhere = gather_object([(e.reward, e.group) for e in self.episodes])
        rewards, groups = zip(*everywhere)
        compare = leave_one_out if self.method == "score" else advantages
        first = self.trainer.accelerator.process_index * len(inputs)
        own = compare(rewards, groups)[first : first + len(inputs)]
        for e, value, of_trl in zip(self.episodes, own.tolist(), output["advantages"].tolist()):
            if value == 0:
                self.rounding.append(abs(of_trl))
            else:
                self.ratios.append(of_trl / value)
            e.advantage = of_trl  # the gradients are compared at the same advantages
        self.tokens = output["num_items_in_batch"].item()  # of a rollout, of all processes
        output["place"] = torch.arange(len(inputs))  # TRL shuffles the rows
        return output

    def before_loss(self, model, inputs):
        self.batch += [self.episodes[place] for place in inputs["place"].tolist()]
        return self.compute_loss(model, inputs)

    def on_pre_optimizer_step(self, config, state, control, **_):
        model = self.policy.model
        model.load_state_dict(self.trainer.model.state_dict())
        model.zero_grad()
        episodes = []
        for sample, advantage, kl in gather_object(
            [(e.sample, e.advantage, e.kl) for e in self.batch]
        ):
            e = Episode(sample, "", "", None, kl=kl, advantage=advantage)
            episodes.append(e)
        self.batch = []
        train.accumulate(
            model,
            episodes,
            micro_batches(model, [e.sample for e in episodes]),
            self.tokens / UPDATES,
            clip=0.2,
            temperature=1.0,
            reference=self.reference,
            meter=Meter(),
        )
        own = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        of_trl = [weight.grad.flatten() for weight in self.trainer.model.parameters()]
        difference = (torch.cat(of_trl) - own).norm() / own.norm()
        self.differences.append(difference.item())


# ------------------------------------------------------------------------------------- the checks


def fingerprint(model):
    """A hash of all weights: the same if they agree bit for bit."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def check_method(method, folder):
    trainer = start(method, folder, save_strategy="no")
    seen = Compared(method, trainer)
    trainer.train()
    counts = sum(gather_object([seen.counts]), Counter())
    ratios = gather_object(seen.ratios)
    rounding = max(gather_object(seen.rounding))
    differences = gather_object(seen.differences)
    prints = gather_object([fingerprint(trainer.model)])
    rows = counts["rows"]
    factor = 1.0 if method == "score" else math.sqrt(1 - 1 / N)  # the sample's deviation is larger
    agree = len(set(prints)) == 1
    show(f"{method}: of {rows} rows, prompts equal {counts['prompts']}, rewards equal", end=" ")
    show(f"{counts['rewards']}; cut {counts['cut']}", end="; ")
    show(f"responses in place of critiques {counts['more responses']}")
    show(f"  TRL's advantages: {min(ratios):.5f} to {max(ratios):.5f} of the project's", end=", ")
    show(f"at most {rounding:.1e} where those are 0")
    show(f"  gradients: {min(differences):.1e} to {max(differences):.1e} apart, relative")
    show(f"  weights of {len(prints)} process(es) agree bit for bit: {agree}")
    return (
        counts["prompts"] == counts["rewards"] == rows
        and not counts["broken groups"]
        and max(abs(ratio - factor) for ratio in ratios) < 1e-3
        and rounding < 1e-3
        and max(differences) < 1e-3
        and agree
        and len(prints) == int(os.environ.get("WORLD_SIZE", 1))
    )


def check_restart(method, folder):
    """A run that goes on from a checkpoint ends as one without a stop, pass after pass over the
    questions."""
    few = f"{folder}/few-{os.environ.get('RANK', 0)}.jsonl"
    write_jsonl(few, map(from_problem, load_problems("toy/train.jsonl")[:20]))
    settings = {"save_strategy": "steps", "save_steps": 2 * UPDATES, "data": few}
    out = f"{folder}/{method}"
    straight = start(method, out, **settings)
    straight.train()
    checkpoint = f"{out}/checkpoint-{2 * UPDATES}"
    resumed = start(method, out, **settings, resume_from_checkpoint=checkpoint)
    resumed.train(checkpoint)
    same = fingerprint(straight.model) == fingerprint(resumed.model)
    show(f"{method}, resumed after 2 of {ROLLOUTS} rollouts, ends as without a stop: {same}")
    return same


def check_refusals():
    refused = 0
    for program, flags in REFUSED:
        try:
            program.build(flags.split())
            show(f"NOT refused: {flags}")
        except InputError as error:
            show(f"refused: {flags}: {error}")
            refused += 1
    return refused == len(REFUSED)


def show(text, end="\n"):
    if os.environ.get("RANK", "0") == "0":
        print(text, end=end, flush=True)


def main():
    if len(sys.argv) == 1:
        quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
        on_the_cpu = {"CUDA_VISIBLE_DEVICES": ""}
        for launcher in ("-m", "-m torch.distributed.run --standalone --nproc-per-node 2 -m"):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, *launcher.split(), "scale.check", folder]
                environment = quiet | os.environ | on_the_cpu
                if subprocess.run(command, env=environment).returncode:
                    sys.exit("scale.check: something is not as it should be")
        return
    folder = sys.argv[1]
    good = [check_refusals()] if "RANK" not in os.environ else []
    good += [check_method(method, folder) for method in PROGRAMS]
    good += [check_restart(method, folder) for method in ("gc-rl", "score")]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
