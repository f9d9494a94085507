"""Does TRL train what the project trains? Four rollouts of each method on the toy, compared.

    python -m scale.check        on the CPU, by one process, then by two; about three minutes

Prompts and rewards come from the project's recipes (train.METHODS), with TRL's engine as the
sampler; what they return must fit the rows that TRL compares with each other. At each rollout TRL's
advantages are compared with the project's. At each optimizer step the project's gradient
(train.add_gradient) is computed for TRL's mini-batch, and compared with the one that TRL is about
to apply.
"""

import hashlib
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, TrainerCallback

import train
from details.data import from_problem, load_problems, write_jsonl
from details.errors import InputError
from details.flags import train_flags
from reward import advantages, leave_one_out
from rollout import Sample, load_policy, logprobs
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
# The limit is one by which a few completions are truncated.
PROGRAMS = {
    "g-rl": (trl_gcrl, {"method": "g-rl", "max_completion_length": 24}),
    "c-rl": (
        trl_gcrl,
        {"method": "c-rl", "max_completion_length": 36, "data": "toy/exam.jsonl"},
    ),
    "gc-rl": (trl_gcrl, {"method": "gc-rl", "max_completion_length": 32}),
    "score": (trl_score, {"max_completion_length": 26, "alpha": 2.0, "beta2": 0.25}),
}
REFUSED = [
    (trl_gcrl, "--per_device_train_batch_size 10"),
    (trl_gcrl, "--use_bias_correction_kl true"),
    (trl_gcrl, "--max_steps -1"),
    (trl_gcrl, "--gradient_accumulation_steps 3"),
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
    train.MAX_AWAY = 0.05 if method == "score" else 1e9
    return trainer


class Compared(TrainerCallback):
    """One run, watched from its rollouts to its gradients."""

    def __init__(self, method, trainer):
        self.method = method
        self.trainer = trainer
        self.model, _ = load_policy("toy")
        self.reference, _ = load_policy("toy")
        self.counts = Counter()
        self.batch = []  # the Samples of an optimizer step
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

    # -------------------------------------------------------------------------------- the rollout

    def after_rollout(self, chats, trainer):
        """Keep the rollout's rows as Samples, scored by the policy that has drawn them."""
        output = self.rollout_func(chats, trainer)
        self.model.load_state_dict(trainer.model.state_dict())
        stops = self.model.generation_config.eos_token_id
        self.samples = []
        for row, (prompt, tokens) in enumerate(zip(output["prompt_ids"], output["completion_ids"])):
            sample = Sample(prompt, tokens, [], stopped=tokens[-1] in stops)
            sample.reward = output["reward"][row]
            sample.group = output["group"][row] if "group" in output else tuple(prompt)
            sample.kl_weight = output["kl"][row] if "group" in output else trainer.beta
            self.samples.append(sample)
        with torch.no_grad():
            for sample, row in zip(self.samples, logprobs(self.model, self.samples)):
                sample.logprobs = row.tolist()
        self.count(chats)
        return output

    def count(self, chats):
        """Do the rows have what TRL takes for granted: of n rows one prompt?"""
        prompts = [sample.prompt for sample in self.samples]
        if self.method == "score":  # each second attempt has a prompt of its own
            prompts = prompts[: len(prompts) // 2]
        for rows in (chats, prompts):
            self.counts["broken groups"] += rows != [rows[i // N * N] for i in range(len(rows))]
        self.counts["rows"] += len(self.samples)
        self.counts["filled"] += len(self.samples) == len(chats)
        self.counts["rewarded"] += sum(sample.reward > 0 for sample in self.samples)
        self.counts["truncated"] += sum(not sample.stopped for sample in self.samples)

    # --------------------------------------------------------------------- advantages, gradients

    def after_scoring(self, inputs):
        output = self.score_rows(inputs)
        # SCoRe compares across processes.
        everywhere = gather_object([(s.reward, s.group) for s in self.samples])
        rewards, groups = zip(*everywhere)
        if self.method == "score":
            own = leave_one_out(rewards, groups)
        else:
            own = advantages(rewards, groups)
        first = self.trainer.accelerator.process_index * len(inputs)
        own = own[first : first + len(inputs)].tolist()
        for sample, value, of_trl in zip(self.samples, own, output["advantages"].tolist()):
            if value == 0:
                self.rounding.append(abs(of_trl))
            else:
                self.ratios.append(of_trl / value)
            sample.advantage = of_trl  # the gradients are compared at the same advantages
        self.tokens = output["num_items_in_batch"].item()  # of a rollout, of all processes
        output["index"] = torch.arange(len(inputs))  # TRL shuffles the rows
        return output

    def before_loss(self, model, inputs):
        self.batch += [self.samples[index] for index in inputs["index"].tolist()]
        return self.compute_loss(model, inputs)

    def on_pre_optimizer_step(self, config, state, control, **_):
        self.model.load_state_dict(self.trainer.model.state_dict())
        self.model.zero_grad()
        samples = gather_object(self.batch)
        self.batch = []
        args = train_flags([], train.METHODS)
        tokens = self.tokens / UPDATES
        train.add_gradient(self.model, samples, self.reference, tokens, args)
        own = torch.cat([weight.grad.flatten() for weight in self.model.parameters()])
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
    show(f"{method}: {rows} rows, {counts['rewarded']} rewarded", end="; ")
    show(f"truncated {counts['truncated']}; broken groups {counts['broken groups']}")
    show(f"  TRL's advantages: {min(ratios):.5f} to {max(ratios):.5f} of the project's", end=", ")
    show(f"at most {rounding:.1e} where those are 0")
    show(f"  gradients: {min(differences):.1e} to {max(differences):.1e} apart, relative")
    show(f"  weights of {len(prints)} process(es) agree bit for bit: {agree}")
    return (
        0 < counts["rewarded"] < rows
        and counts["filled"] == ROLLOUTS * len(prints)
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
