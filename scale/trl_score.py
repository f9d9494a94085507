"""SCoRe in TRL: n first attempts at a question, a second attempt after each, in two stages.

The first half of a step's rows are first attempts, the other half their second attempts in the same
order. Three things that TRL has otherwise are put in its place, by `Score`: the advantages, since
TRL would compare the n rows that stand together, and a second attempt is compared with those that
follow a first attempt of the same outcome; the weight of the KL, since Stage I holds first attempts
by a stronger one; and how far the reference may count as above the policy.

    python -m scale.trl_score --model toy --data toy/train.jsonl --out out-trl

All other flags are those of TRL's GRPOConfig. `trl_gcrl.py` comes first: it has what both share.
"""

import math

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

import train
from details.data import run_command
from details.errors import InputError
from reward import leave_one_out
from scale.trl_gcrl import (
    SETTINGS,
    TrlSampler,
    asked,
    columns,
    flags,
    given,
    log,
    of_process,
    read_items,
    recipe_flags,
    rows_of,
    start,
    step_of,
)


def attempts(chats, trainer):
    """What TRL calls for the completions of a step: train.py's recipe, with TRL's engine as its
    sampler."""
    args = of_process(trainer.score, trainer)
    half = len(chats) // 2
    # First attempts, as many of them as TRL has a question in a row.
    problems = [trainer.problems[chat[0]["content"]] for chat in chats[: half : args.n]]
    sampler = TrlSampler(trainer)
    samples, metrics = train.score(args, sampler, step_of(trainer), problems, None, [])
    log(trainer, metrics)
    more = {
        "group": [sample.group for sample in samples],
        "kl": [sample.kl_weight for sample in samples],
    }
    return columns(samples) | more


class Score(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        # TRL has put what the rollout returned into inputs, a dict a row. A second attempt may be
        # compared with those at other questions, so the rows of all processes are gathered.
        rewards = gather_object([row["reward"] for row in inputs])
        groups = gather_object([row["group"] for row in inputs])
        advantages = leave_one_out(rewards, groups)
        mine = self.accelerator.process_index * len(inputs)
        advantages = advantages[mine : mine + len(inputs)]
        output["advantages"] = advantages.to(self.accelerator.device)
        output["kl"] = torch.tensor([row["kl"] for row in inputs], device=self.accelerator.device)
        return output

    def _get_per_token_logps_and_entropies(self, *args, **options):
        found = super()._get_per_token_logps_and_entropies(*args, **options)
        self.logprobs = found[0]  # for `_compute_loss`
        return found

    def _compute_loss(self, model, inputs):
        # TRL's loss without its KL, which has one weight for all rows.
        beta = self.beta
        self.beta = 0.0
        loss = super()._compute_loss(model, inputs)
        self.beta = beta
        # The project's KL: k3 of a bounded reference, see train.add_gradient.
        new = self.logprobs  # [rows, length]
        ref = torch.minimum(inputs["ref_per_token_logps"], new.detach() + train.MAX_AWAY)
        mask = inputs["completion_mask"].bool()
        away = (ref - new).masked_fill(~mask, 0.0)
        k3 = away.exp() - away - 1
        penalty = (inputs["kl"][:, None] * k3).sum()
        # A mean over tokens, as TRL's: this update's share of the tokens of all processes.
        updates = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes / updates
        self._log_metric("kl", float(k3.detach().sum() / mask.sum()))
        return loss + penalty / tokens


def build(argv=None):
    """The trainer that the flags describe."""
    # Both are the papers': --beta is beta1, the weight of the KL on both attempts.
    parser = flags(SETTINGS | {"beta": 0.01})
    parser.add_argument("--beta2", type=float, default=0.1, help="on top, for first attempts")
    parser.add_argument("--alpha", type=float, default=10.0, help="weight of the shaping")
    parser.add_argument("--stage1", type=float, default=0.5, help="share of the steps")
    config, args = parser.parse_args_into_dataclasses(argv)
    problems = read_items(args)
    rows_of(config, share=2)
    if config.beta == 0:
        raise InputError("--beta 0: TRL loads no reference then, and Stage I needs it")

    trainer = Score(
        args.model,
        given,
        config,
        asked(config, problems),
        rollout_func=attempts,
    )
    updates = config.steps_per_generation / config.gradient_accumulation_steps
    rollouts = config.max_steps / updates
    trainer.score = recipe_flags(
        config,
        method="score",
        steps=math.ceil(rollouts),
        stage1_steps=math.ceil(args.stage1 * rollouts),
        alpha=args.alpha,
        beta1=config.beta,
        beta2=args.beta2,
    )
    trainer.problems = problems
    return trainer


if __name__ == "__main__":
    run_command(lambda: start(build()))
