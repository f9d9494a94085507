"""GC-RL in TRL: the project's prompts, rewards, filter and cache; TRL's sampling, loss and GPUs.

In a step TRL hands each process rows of questions, each question n times in a row, and wants a
completion for each row. `Rollout` gives it, in `gc-rl`, responses in the first half of the rows and
in the second half critiques of responses of the first half, n of each: TRL then compares n rows
with each other, as it always does. `g-rl` has responses in all rows. `c-rl` has critiques in all
rows, of the pairs in a file.

    python -m scale.trl_gcrl --method gc-rl --model toy --data toy/train.jsonl --out out-trl

All other flags are those of TRL's GRPOConfig. Differences in definition: scale/README.md.
"""

import random
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import HfArgumentParser, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from critique import critique, judgement, solve
from details.data import (
    InputError,
    Pair,
    batch_of,
    load_problems,
    read_jsonl,
    run_command,
    to_pair,
)
from details.policy import TOY, stop_set
from reward import PairCache, critique_reward, filter_pairs, pairs_by_question
from rollout import Episode, Sample, answered, decode, encode_chat
from train import outcome_reward

# The papers' settings where TRL has others. All of them are flags.
SETTINGS = {
    "steps_per_generation": 4,  # updates per rollout
    "num_generations": 8,  # n (paper: 5)
    "max_steps": 800,  # updates
    "shuffle_dataset": False,  # see `asked`
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 12,  # three rollouts
    "adam_beta2": 0.95,
    "beta": 1e-3,  # weight of the KL
    "use_bias_correction_kl": False,  # see `rows_of`
    "bf16": torch.cuda.is_available(),
    # Left out, two processes without a GPU would be two runs that know nothing of each other.
    "use_cpu": not torch.cuda.is_available(),
    "output_dir": "out-trl",
}


@dataclass
class Rollout:
    """What TRL calls for the completions of a step."""

    method: str
    items: dict  # {prompt: the problem, in c-rl the pair, that it is about}
    cache: PairCache  # of this process: its pairs are of its own responses
    rng: random.Random

    def __call__(self, chats, trainer):
        n = trainer.num_generations
        items = [self.items[chat[0]["content"]] for chat in chats]
        if self.method != "gc-rl":
            return columns(rewarded(trainer, items))

        # First-order rollout.
        half = len(items) // 2
        responses = rewarded(trainer, items[:half])
        # Data filter and cache.
        groups = pairs_by_question(responses, n)
        self.cache.extend(filter_pairs(groups, self.rng))
        pairs = self.cache.draw(half // n, self.rng)
        # Second-order rollout. Rows for which there is no pair keep their question.
        asked = items[half:]
        for place, pair in enumerate(pairs):
            asked[n * place : n * place + n] = [pair] * n
        return columns(responses + rewarded(trainer, asked))


def ask(item):
    """Chat messages: solve the problem, or criticise the pair."""
    if isinstance(item, Pair):
        return critique(item.problem.question, item.response)
    return solve(item.question)


def rewarded(trainer, items):
    """A completion for each item: a response to a problem (eq. 1), a critique of a pair (eq. 2)."""
    episodes = []
    for item, (sample, text) in zip(items, complete(trainer, map(ask, items))):
        if isinstance(item, Pair):
            # A critique that was cut has no conclusion.
            says_right = judgement(text) if sample.stopped else None
            reward = critique_reward(says_right, item.right)
            e = Episode(sample, text, "critique", item.problem, reward=reward)
        else:
            e = answered(item, sample, text, "response")
            e.reward = outcome_reward(e)  # 0 if it was cut
        trainer._log_metric(f"{e.role}/reward", e.reward)
        episodes.append(e)
    return episodes


def complete(trainer, chats):
    """One completion of each chat by TRL's engine: [(Sample, text), ...]."""
    tokenizer = trainer.processing_class
    # Not TRL's own template: there a response that spells a mark of turns closes its quotation.
    prompts = [encode_chat(tokenizer, chat) for chat in chats]
    # One a row, also where n rows are alike: asked for n, vLLM's server mode would keep every n-th
    # prompt only, and no two second attempts have the same one.
    completions, logprobs = trainer._generate_single_turn(prompts, None, {}, num_generations=1)
    # transformers returns no log-probs; TRL then scores the tokens again.
    logprobs = logprobs or [[]] * len(prompts)
    drawn = []
    for prompt, tokens, known in zip(prompts, completions, logprobs):
        sample = Sample(prompt, tokens, known, stopped=tokens[-1] in trainer.eos_token_ids)
        text, sample.stopped = decode(tokenizer, sample)
        drawn.append((sample, text))
    return drawn


def columns(episodes):
    """Episodes in TRL's form; what it does not know of goes to the reward function."""
    logprobs = [e.sample.logprobs for e in episodes]
    return {
        "prompt_ids": [e.sample.prompt for e in episodes],
        "completion_ids": [e.sample.tokens for e in episodes],
        "logprobs": logprobs if logprobs[0] else None,
        "reward": [e.reward for e in episodes],
    }


def given(reward, **_):
    """TRL's reward function: the rollout has settled it."""
    return reward


class Keep(TrainerCallback):
    """The cache and its random state, which TRL's checkpoints do not have: a file a process."""

    def __init__(self, rollout):
        self.rollout = rollout

    def on_save(self, config, state, control, **_):
        kept = list(self.rollout.cache), self.rollout.rng.getstate()
        checkpoint = f"{config.output_dir}/checkpoint-{state.global_step}"
        torch.save(kept, f"{checkpoint}/cache-{config.process_index}.pt")

    def on_train_begin(self, config, state, control, **_):
        checkpoint = config.resume_from_checkpoint
        if checkpoint:  # a run that goes on
            file = f"{checkpoint}/cache-{config.process_index}.pt"
            pairs, random_state = torch.load(file, weights_only=True)
            self.rollout.cache.extend(pairs)
            self.rollout.rng.setstate(random_state)


# ----------------------------------------------------------------------------------------- flags


def flags(settings):
    """A parser for TRL's flags, and those of both programs."""
    parser = HfArgumentParser(GRPOConfig)
    parser.set_defaults(**settings)
    parser.add_argument("--model", default=str(TOY), help="a model folder or a hub id")
    # A JSONL file with question and answer, in c-rl with response and label too, or gsm8k.
    parser.add_argument("--data", help="JSONL file, or gsm8k [train.jsonl in the model's folder]")
    parser.add_argument("--out", dest="output_dir", help="folder of the run and its model")
    return parser


def read_pairs(path):
    return read_jsonl(path, to_pair)


def read_items(args, read=load_problems):
    """{the prompt's text: the item}: TRL tells a rollout no more than the prompts of its rows."""
    found = read(args.data or f"{args.model}/train.jsonl")
    return {ask(item)[0]["content"]: item for item in found}


def asked(config, items):
    """What each group of rows of every rollout is asked, pass after pass over the items as in
    train.py. For TRL it is one pass: its own order of a second one begins anew after a restart."""
    groups = config.generation_batch_size // config.num_generations
    updates = config.steps_per_generation / config.gradient_accumulation_steps
    rows = []
    for step in range(1, int(config.max_steps / updates) + 2):
        for item in batch_of(list(items.values()), step, config.seed, groups):
            rows.append({"prompt": ask(item)})
    return Dataset.from_list(rows)


def rows_of(config, share):
    """The rows of a process in a rollout; what would break later, or train something else, ends
    here. share: 2 where each half of the rows must be whole groups of n, else 1."""
    rows = config.per_device_train_batch_size * config.steps_per_generation
    part = share * config.num_generations
    if rows % part:
        product = "per_device_train_batch_size x steps_per_generation"
        raise InputError(f"{rows} rows per process ({product}) are no multiple of {part}")
    if config.beta and config.use_bias_correction_kl:
        raise InputError("--use_bias_correction_kl: the gradient would not be that of the KL here")
    return rows


def start(trainer):
    """Train, from a checkpoint if the flags name one, and save the model."""
    stops = set(stop_set(trainer.model, trainer.processing_class))
    if not stops <= set(trainer.eos_token_ids):
        raise InputError(f"generation_config.json of the model: eos_token_id must be {stops}")
    trainer.train(trainer.args.resume_from_checkpoint)
    trainer.save_model()


def build(argv=None):
    """The trainer that the flags describe."""
    parser = flags(SETTINGS)
    parser.add_argument("--method", default="gc-rl", choices=["g-rl", "c-rl", "gc-rl"])
    config, args = parser.parse_args_into_dataclasses(argv)
    items = read_items(args, read_pairs if args.method == "c-rl" else load_problems)
    rows = rows_of(config, share=2 if args.method == "gc-rl" else 1)
    # Room for twice the pairs of a step, as in train.py.
    cache = PairCache(maxlen=rows // config.num_generations)
    rollout = Rollout(args.method, items, cache, random.Random(config.seed))
    return GRPOTrainer(
        args.model,
        given,
        config,
        asked(config, items),
        rollout_func=rollout,
        callbacks=[Keep(rollout)],
    )


if __name__ == "__main__":
    run_command(lambda: start(build()))
