"""SCoRe in TRL: n first attempts at a question, a second attempt after each, in two stages.

The first half of a step's rows are first attempts, the other half their second attempts in the same
order. Three things that TRL has otherwise are put in its place, by `Score`: the advantages, since
TRL would compare the n rows that stand together, and a second attempt is compared with those that
follow a first attempt of the same outcome; the weight of the KL, since Stage I holds first attempts
by a stronger one; and how far the reference may count as above the policy.

    python -m scale.trl_score --model toy --data toy/train.jsonl --out out-trl

All other flags are those of TRL's GRPOConfig. `trl_gcrl.py` comes first: it has what both share.
"""

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from critique import correct
from details.data import InputError, run_command
from reward import leave_one_out, shaped_reward
from rollout import answered
from scale.trl_gcrl import (
    SETTINGS,
    asked,
    columns,
    complete,
    flags,
    given,
    read_items,
    rows_of,
    start,
)
from train import MAX_AWAY, outcome_reward


def attempts(chats, trainer):
    """What TRL calls for the completions of a step."""
    args = trainer.score
    half = len(chats) // 2
    # First attempts, as many of them as TRL has a question in a row.
    first = []
    problems = [trainer.problems[chat[0]["content"]] for chat in chats[:half]]
    for problem, (sample, text) in zip(problems, complete(trainer, chats[:half])):
        first.append(answered(problem, sample, text, "attempt 1"))
    # One second attempt after each: the conversation goes on.
    second = []
    again = [correct(e.problem.question, e.text) for e in first]
    for problem, (sample, text) in zip(problems, complete(trainer, again)):
        second.append(answered(problem, sample, text, "attempt 2"))

    stage1 = trainer.state.global_step < args.stage1 * trainer.state.max_steps
    for a, b in zip(first, second):
        a.reward = outcome_reward(a)  # 0 if it was cut
        b.reward = outcome_reward(b)
        a.group = ("attempt 1", None, a.problem.question)
        b.group = ("attempt 2", a.right, a.problem.question)
        a.kl = trainer.beta
        b.kl = trainer.beta
        if stage1:
            # The second attempt is rewarded, the first is held to the base by a strong KL.
            a.reward = 0.0
            a.kl += args.beta2
        else:
            # Both are rewarded, and the second is paid for what it changes.
            b.reward = shaped_reward(a.reward, b.reward, args.alpha)
    for name, some in {"t1": first, "t2": second}.items():
        trainer._log_metric(name, sum(e.right for e in some) / half)
    both = first + second
    return columns(both) | {"group": [e.group for e in both], "kl": [e.kl for e in both]}


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
        # The project's KL: k3, and what is bounded is the pull, see train.accumulate.
        new = self.logprobs  # [rows, length]
        ref = torch.minimum(inputs["ref_per_token_logps"], new.detach() + MAX_AWAY)
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
    trainer.score = args
    trainer.problems = problems
    return trainer


if __name__ == "__main__":
    run_command(lambda: start(build()))
