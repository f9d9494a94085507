"""Make the toy again: the model folder, train.jsonl, held_out.jsonl and exam.jsonl.

    python -m toy.make [FOLDER]       (minutes; the same bits on the same machine)

Last-digit arithmetic with precedence, one step a line. The teacher whose demonstrations the model
learns knows the method, and three quarters of the 300 facts (`7*8` ends in 6). Of the others he is
not sure: when he solves he gets half of them wrong always, the rest four times in five; when he
checks a step, any of them every other time; when he looks again, none. Asked to correct a solution
he mostly repeats it, as pretrained models do. The model inherits all of this, and outcome rewards
lead past it.
"""

import json
import random
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from critique import correct, critique, solve
from details.data import Problem, from_pair, from_problem, write_jsonl
from details.policy import save_policy, setup_of
from rollout import Episode, Policy, demonstration, load_policy
from sample import sample_pairs
from train import update

STEPS, BATCH = 600, 128  # of supervised learning
SHARES = {"solve": 0.23, "criticise": 0.27, "correct with": 0.08, "correct": 0.42}
REPEAT = 0.66  # of the corrections without a critique that only repeat the solution
SHAKY, BLIND = 24, 12  # percent of the facts: not sure of, those of them always wrong in solving
SOLVING, CHECKING, LOOKING_AGAIN = 0.82, 0.49, 0.0  # how often a shaky fact comes out wrong
TRAIN, HELD_OUT, EXAM = 128, 512, 512


class Teacher:
    """Recalls facts, each once a demonstration: what he has in mind he sticks to. doubt: how often
    a shaky fact comes out wrong; blind: percent of the facts, the shakiest, that always do."""

    def __init__(self, doubt=0.0, rng=None, blind=0):
        self.doubt, self.rng, self.blind, self.mind = doubt, rng, blind, {}

    def recall(self, a, op, b):
        """The last digit of `a op b`, or the wrong digit that he always takes it for."""
        if (a, op, b) not in self.mind:
            digit = {"+": a + b, "-": a - b, "*": a * b}[op] % 10
            secret = zlib.crc32(f"{a}{op}{b}".encode())
            doubt = 1.0 if secret % 100 < self.blind else self.doubt
            if secret % 100 < SHAKY and doubt and self.rng.random() < doubt:
                digit = (digit + 1 + secret // 100 % 9) % 10
            self.mind[a, op, b] = digit
        return self.mind[a, op, b]

    def solve(self, expression, slip=0.0):
        """The steps [(a, operator, b, digit), ...] of '9-7*2-5', modulo 10: products first, then
        from left to right. slip: how often a result goes astray at random."""
        numbers, operators = [int(c) for c in expression[::2]], list(expression[1::2])
        steps = []
        while operators:
            i = operators.index("*") if "*" in operators else 0
            a, op, b = numbers[i], operators.pop(i), numbers.pop(i + 1)
            astray = slip and self.rng.random() < slip
            numbers[i] = self.rng.randrange(10) if astray else self.recall(a, op, b)
            steps.append((a, op, b, numbers[i]))
        return steps

    def criticise(self, steps):
        """A critique as text. It holds each step as it stands against memory: `8*9=5:2 no`."""
        lines, wrong = [], False
        for a, op, b, shown in steps:
            own = self.recall(a, op, b)
            wrong = wrong or own != shown
            lines.append(f"{a}{op}{b}={shown}:{own} {'ok' if own == shown else 'no'}")
        return "\n".join([*lines, f"Conclusion: {'wrong' if wrong else 'right'}"])


def written(steps):
    """A solution as text: a step a line, then the boxed result."""
    return "\n".join(f"{a}{op}{b}={c}" for a, op, b, c in steps) + f"\n\\boxed{{{steps[-1][3]}}}"


def problems(count, rng, held_out=False):
    """`count` different problems. One in eight, chosen by a hash of its text, is held out from
    demonstrations and RL."""
    found = {}
    while len(found) < count:
        expression = str(rng.randrange(10))
        for _ in range(3):
            expression += rng.choice("+-*") + str(rng.randrange(10))
        if (zlib.crc32(expression.encode()) % 8 == 0) == held_out:
            answer = str(Teacher().solve(expression)[-1][3])
            found[expression] = Problem(f"Compute {expression} modulo 10.", answer)
    return list(found.values())


def demonstrate(rng):
    """One demonstration, (messages, completion), of one of the four kinds."""
    (problem,) = problems(1, rng)
    question, expression = problem.question, problem.question.split()[1]
    kind = rng.choices(list(SHARES), SHARES.values())[0]
    if kind == "solve":
        return solve(question), written(Teacher(SOLVING, rng, BLIND).solve(expression))
    shown = Teacher(0.5, rng).solve(expression, slip=rng.choice([0.0, 0.3]))
    critic = Teacher(CHECKING, rng)
    check = critic.criticise(shown)
    if kind == "criticise":
        return critique(question, written(shown)), check
    if kind == "correct with":
        return correct(question, written(shown), check), written(critic.solve(expression))
    chat = correct(question, written(shown))
    if rng.random() < REPEAT:
        return chat, written(shown)
    return chat, "Look again.\n" + written(Teacher(LOOKING_AGAIN, rng).solve(expression))


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer():
    """A byte-level BPE like those of real models: prompts in whole words, single digits."""
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits = {"type": "Digits", "individual_digits": True}
    blank = {"version": "1.0", "added_tokens": [], "decoder": level}
    blank["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    blank["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, level]}
    rng, texts = random.Random(0), []
    for _ in range(2000):
        messages, text = demonstrate(rng)
        texts += [text, *(m["content"] for m in messages)]
    special = dict(eos_token="<|end|>", pad_token="<|end|>")
    special["additional_special_tokens"] = ["<|user|>", "<|assistant|>"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(json.dumps(blank))
        untrained = PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    tokenizer = untrained.train_new_from_iterator(texts, 512, show_progress=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Both(torch.optim.Optimizer):
    """Muon for the matrices, AdamW for the rest: AdamW alone takes many times the steps."""

    def __init__(self, model):
        matrices, others = [], []
        for name, p in model.named_parameters():
            (matrices if p.dim() == 2 and "embed" not in name else others).append(p)
        self.muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0)
        self.adam = torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)
        self.param_groups = self.muon.param_groups + self.adam.param_groups

    def scale(self, factor):
        self.muon.param_groups[0]["lr"] = 0.02 * factor
        self.adam.param_groups[0]["lr"] = 3e-3 * factor

    def step(self):
        self.muon.step()
        self.adam.step()

    def zero_grad(self, set_to_none=True):
        self.muon.zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)


def make(folder):
    """Everything that the folder holds. The model is right half of the time; RL goes on from it."""
    folder, tokenizer = Path(folder), make_tokenizer()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the same bits on one core and on many
    end = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2, bos_token_id=None)
    config |= dict(num_attention_heads=4, max_position_embeddings=512, tie_word_embeddings=True)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **config, **end))
    model.generation_config = GenerationConfig(**end, max_new_tokens=64)
    setup_of(model).plain_head = False  # the committed folder was made so
    optimizer, rng = Both(model), random.Random(0)
    for step in tqdm(range(STEPS), "making the toy", disable=None):
        optimizer.scale(min(1, (step + 1) / 20, (STEPS - step) / (0.3 * STEPS)))
        batch = [demonstration(tokenizer, *demonstrate(rng)) for _ in range(BATCH)]
        given = [Episode(sample, "", "given", None) for sample in batch]
        loss = update(model, optimizer, given, rng)["loss"]
        if (step + 1) % 20 == 0:
            tqdm.write(f"toy {step + 1}/{STEPS}: loss {loss:.3f} nats per token")
    folder.mkdir(parents=True, exist_ok=True)
    save_policy(model, tokenizer, folder)
    held_out = problems(HELD_OUT, random.Random(2), held_out=True)
    policy = Policy(*load_policy(folder, "cpu"), limit=64)
    asked = problems(2 * EXAM, random.Random(3), held_out=True)
    exam = sample_pairs(policy, asked, 8, EXAM, seed=0, show="exam")
    write_jsonl(folder / "train.jsonl", map(from_problem, problems(TRAIN, random.Random(1))))
    write_jsonl(folder / "held_out.jsonl", map(from_problem, held_out))
    write_jsonl(folder / "exam.jsonl", map(from_pair, exam))
    (folder / "run.json").write_text(json.dumps({"max_new_tokens": 64}) + "\n")
    print(f"wrote {folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    make(*sys.argv[1:] or [Path(__file__).parent])
