"""GC-RL in TRL: the project's recipes, filter and cache; TRL's sampling, loss and GPUs.

In a step TRL hands each process rows of questions, each question n times in a row, and wants a
completion for each row. `Rollout` gives it, in `gc-rl`, responses in the first half of the rows and
in the second half critiques of responses of the first half, n of each: TRL then compares n rows
with each other, as it always does. `g-rl` has responses in all rows. `c-rl` has critiques in all
rows, of the pairs in a file. What is asked and rewarded is train.py's recipe, with TRL's engine as
its sampler.

    python -m scale.trl_gcrl --method gc-rl --model toy --data toy/train.jsonl --out out-trl

All other flags are those of TRL's GRPOConfig. Differences in definition: scale/README.md.
"""

from argparse import Namespace
from dataclasses import dataclass

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from datasets import Dataset
from transformers import HfArgumentParser, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import train
from critique import critique_prompt, solve_prompt
from details.data import batch_of, load_problems, read_jsonl, run_command, seed_of, to_pair
from details.errors import InputError
from details.flags import train_flags
from details.policy import TOY, decode, encode_chat, stop_set
from reward import Pair, PairCache
from rollout import Sample

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
class TrlSampler:
    """TRL's engine as a sampler of the project's rollouts."""

    trainer: GRPOTrainer

    def complete(self, chats, n, seed):
        """n Samples with their texts for each chat, in chat-major order; TRL has its own seeds."""
        tokenizer = self.trainer.processing_class
        # Not TRL's own template: there a response that spells a mark of turns closes its quotation.
        prompts = [encode_chat(tokenizer, chat) for chat in chats for _ in range(n)]
        if not prompts:
            return []
        # One a row, also where n rows are alike: asked for n, vLLM's server mode would keep every
        # n-th prompt only, and no two second attempts have the same one.
        generate = self.trainer._generate_single_turn
        completions, logprobs = generate(prompts, None, {}, num_generations=1)
        # transformers returns no log-probs; TRL then scores the tokens again.
        logprobs = logprobs or [[]] * len(prompts)
        samples = []
        for prompt, tokens, known in zip(prompts, completions, logprobs):
            stopped = tokens[-1] in self.trainer.eos_token_ids
            sample = Sample(prompt, tokens, known, stopped)
            sample.text, sample.stopped = decode(tokenizer, sample)
            samples.append(sample)
        return samples


@dataclass
class Rollout:
    """What TRL calls for the completions of a step."""

    args: Namespace  # train.py's flags
    items: dict  # {prompt: the problem, in c-rl the pair, that it is about}
    cache: PairCache  # of this process: its pairs are of its own responses

    def __call__(self, chats, trainer):
        args = of_process(self.args, trainer)
        sampler = TrlSampler(trainer)
        step = step_of(trainer)
        # A question, or in c-rl a pair, for each n rows.
        items = [self.items[chat[0]["content"]] for chat in chats[:: args.n]]
        problems = items
        if args.method == "gc-rl":
            problems = items[: len(items) // 2]
            args.pairs = len(items) - len(problems)
        if args.method == "c-rl":
            samples, metrics = train.rewarded_critiques(args, sampler, step, items)
        else:
            recipe = train.METHODS[args.method]
            samples, metrics = recipe(args, sampler, step, problems, self.cache, [])
        # Rows for which there is no pair keep their question.
        asked = items[len(samples) // args.n :]
        more, _ = train.rewarded_responses(args, sampler, step, asked) if asked else ([], {})
        log(trainer, metrics)
        return columns(samples + more)


def step_of(trainer):
    """Which rollout this is: 1, 2, ..."""
    config = trainer.args
    updates = config.steps_per_generation // config.gradient_accumulation_steps
    return trainer.state.global_step // updates + 1


def of_process(args, trainer):
    """train.py's flags for one process, whose pairs are drawn with a seed of its own."""
    seed = seed_of(args.seed, trainer.accelerator.process_index)
    return Namespace(**vars(args) | {"seed": seed})


def log(trainer, metrics):
    for name, value in metrics.items():
        if value is not None:
            trainer._log_metric(name, value)


def ask(item):
    """Chat messages: solve the problem, or criticise the pair."""
    if isinstance(item, Pair):
        return critique_prompt(item.problem.question, item.response)
    return solve_prompt(item.question, item.program)


def columns(samples):
    """Samples in TRL's form; what it does not know of goes to the reward function."""
    logprobs = [sample.logprobs for sample in samples]
    return {
        "prompt_ids": [sample.prompt for sample in samples],
        "completion_ids": [sample.tokens for sample in samples],
        "logprobs": logprobs if logprobs[0] else None,
        "reward": [sample.reward for sample in samples],
    }


def given(reward, **_):
    """TRL's reward function: the rollout has settled it."""
    return reward


class Keep(TrainerCallback):
    """The cache, which TRL's checkpoints do not have: a file a process."""

    def __init__(self, cache):
        self.cache = cache

    def on_save(self, config, state, control, **_):
        checkpoint = f"{config.output_dir}/checkpoint-{state.global_step}"
        torch.save(list(self.cache), f"{checkpoint}/cache-{config.process_index}.pt")

    def on_train_begin(self, config, state, control, **_):
        checkpoint = config.resume_from_checkpoint
        if checkpoint:  # a run that goes on
            file = f"{checkpoint}/cache-{config.process_index}.pt"
            self.cache.extend(torch.load(file, weights_only=True))


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
    if config.max_steps <= 0:
        raise InputError("--max_steps: must be above 0; epochs are not counted here")
    if config.steps_per_generation % config.gradient_accumulation_steps:
        raise InputError("steps_per_generation: no multiple of gradient_accumulation_steps")
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


def recipe_flags(config, **flags):
    """train.py's flags for a recipe; those of sampling and learning are TRL's."""
    flags |= {"n": config.num_generations, "seed": config.seed, "kl": config.beta}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return train_flags(argv, train.METHODS)


def build(argv=None):
    """The trainer that the flags describe."""
    parser = flags(SETTINGS)
    parser.add_argument("--method", default="gc-rl", choices=["g-rl", "c-rl", "gc-rl"])
    config, args = parser.parse_args_into_dataclasses(argv)
    items = read_items(args, read_pairs if args.method == "c-rl" else load_problems)
    rows = rows_of(config, share=2 if args.method == "gc-rl" else 1)
    # Room for twice the pairs of a step, as in train.py.
    cache = PairCache(maxlen=rows // config.num_generations)
    return GRPOTrainer(
        args.model,
        given,
        config,
        asked(config, items),
        rollout_func=Rollout(recipe_flags(config, method=args.method), items, cache),
        callbacks=[Keep(cache)],
    )


if __name__ == "__main__":
    run_command(lambda: start(build()))
