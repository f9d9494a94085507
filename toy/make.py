"""Make the toy again: the model folder, train.jsonl, held_out.jsonl and exam.jsonl.

    python -m toy.make [FOLDER]       (minutes; the same bits on the same machine)

Last-digit arithmetic with precedence, one step a line. The teacher whose demonstrations the model
learns knows the method, and three quarters of the 300 facts (`7*8` ends in 6). Of the others he is
not sure: when he solves he gets half of them wrong always, the rest four times in five; when he
checks a step, any of them every other time; when he looks again, none. Asked to correct a solution
he mostly repeats it, as pretrained models do. The model inherits all of this, and outcome rewards
lead past it.
"""

import itertools
import json
import random
import sys
import tempfile
import zlib
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from critique import correct, critique, solve
from details.data import Problem, from_pair, from_problem, write_jsonl
from details.policy import TOY, encode_chat, save_policy
from rollout import Episode, Policy, demonstration, load_policy
from sample import mean, sample_pairs
from train import update

STEPS = 1200  # of supervised learning
BATCH = 128  # demonstrations in a step
SHARES = {  # of the kinds of demonstrations
    "solve": 0.23,
    "criticise": 0.27,
    "correct with": 0.08,
    "correct": 0.42,
}
REPEAT = 0.66  # of the corrections without a critique that only repeat the solution
REPEAT_LATE = 0.9  # the same in the last three tenths of the steps
SHAKY = 24  # percent of the facts: those that he is not sure of
BLIND = 12  # percent of the facts: those of them that are always wrong in solving
SOLVING = 0.82  # how often another shaky fact comes out wrong in solving
CHECKING = 0.49  # how often a shaky fact comes out wrong in checking
LOOKING_AGAIN = 0.6  # the same when he looks again
LIMIT = 64  # of a completion, in tokens
LOOK_AGAIN = "Look again.\n"  # how a correction begins that is no repetition
TRAIN = 128  # problems
HELD_OUT = 512  # problems
EXAM = 512  # pairs


def rank(fact):
    """How sure he is of a fact, 0 to 99: the shakiest come first."""
    return zlib.crc32(fact.encode()) % 100


class Teacher:
    """Recalls facts, each once a demonstration: what he has in mind he sticks to. doubt: how often
    a shaky fact comes out wrong; blind: percent of the facts, the shakiest, that always do."""

    def __init__(self, doubt=0.0, rng=None, blind=0):
        self.doubt = doubt
        self.rng = rng
        self.blind = blind
        self.mind = {}  # {fact: digit}

    def recall(self, a, op, b):
        """The last digit of `a op b`, or the wrong digit that he always takes it for."""
        fact = f"{a}{op}{b}"
        if fact in self.mind:
            return self.mind[fact]
        results = {"+": a + b, "-": a - b, "*": a * b}
        digit = results[op] % 10
        # A hash decides which digit he takes it for.
        secret = zlib.crc32(fact.encode())
        doubt = 1.0 if rank(fact) < self.blind else self.doubt
        if rank(fact) < SHAKY and doubt and self.rng.random() < doubt:
            digit = (digit + 1 + secret // 100 % 9) % 10
        self.mind[fact] = digit
        return digit

    def solve(self, expression, slip=0.0):
        """The steps [(a, operator, b, digit), ...] of '9-7*2-5', modulo 10: products first, then
        from left to right. slip: how often a result goes astray at random."""
        numbers = [int(digit) for digit in expression[::2]]
        operators = list(expression[1::2])
        steps = []
        while operators:
            place = operators.index("*") if "*" in operators else 0
            a = numbers[place]
            op = operators.pop(place)
            b = numbers.pop(place + 1)
            if slip and self.rng.random() < slip:
                digit = self.rng.randrange(10)
            else:
                digit = self.recall(a, op, b)
            numbers[place] = digit
            steps.append((a, op, b, digit))
        return steps

    def criticise(self, steps):
        """A critique as text. It holds each step as it stands against memory: `8*9=5:2 no`."""
        lines = []
        conclusion = "right"
        for a, op, b, shown in steps:
            own = self.recall(a, op, b)
            verdict = "ok"
            if own != shown:
                verdict = "no"
                conclusion = "wrong"
            lines.append(f"{a}{op}{b}={shown}:{own} {verdict}")
        lines.append(f"Conclusion: {conclusion}")
        return "\n".join(lines)


def written(steps):
    """A solution as text: a step a line, then the boxed result."""
    lines = [f"{a}{op}{b}={digit}" for a, op, b, digit in steps]
    lines.append(f"\\boxed{{{result(steps)}}}")
    return "\n".join(lines)


def result(steps):
    _, _, _, digit = steps[-1]
    return digit


def problems(count, rng, held_out=False):
    """`count` different problems. One in eight, chosen by a hash of its text, is held out from
    demonstrations and RL."""
    found = {}
    while len(found) < count:
        expression = str(rng.randrange(10))
        for _ in range(3):
            expression += rng.choice("+-*") + str(rng.randrange(10))
        eighth = zlib.crc32(expression.encode()) % 8 == 0
        if eighth == held_out:
            answer = result(Teacher().solve(expression))
            question = f"Compute {expression} modulo 10."
            found[expression] = Problem(question, str(answer))
    return list(found.values())


def demonstrate(rng, repeat=REPEAT):
    """One demonstration, (messages, completion), of one of the four kinds."""
    question = problems(1, rng)[0].question
    expression = question.split()[1]
    kinds = list(SHARES)
    kind = rng.choices(kinds, SHARES.values())[0]
    if kind == "solve":
        steps = Teacher(SOLVING, rng, BLIND).solve(expression)
        return solve(question), written(steps)

    # A solution that may be wrong, and a critique of it.
    slip = rng.choice([0.0, 0.3])
    steps = Teacher(0.5, rng).solve(expression, slip)
    shown = written(steps)
    critic = Teacher(CHECKING, rng)
    check = critic.criticise(steps)
    if kind == "criticise":
        return critique(question, shown), check
    if kind == "correct with":
        corrected = critic.solve(expression)
        return correct(question, shown, check), written(corrected)

    # Without a critique.
    chat = correct(question, shown)
    if rng.random() < repeat:
        return chat, shown
    corrected = Teacher(LOOKING_AGAIN, rng).solve(expression)
    return chat, LOOK_AGAIN + written(corrected)


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer():
    """A byte-level BPE like those of real models: prompts in whole words, single digits."""
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    blank = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(json.dumps(blank), encoding="utf-8")
        untrained = PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            eos_token="<|end|>",
            pad_token="<|end|>",
            additional_special_tokens=["<|user|>", "<|assistant|>"],
        )
    rng = random.Random(0)
    texts = []
    for _ in range(2000):
        messages, text = demonstrate(rng)
        texts.append(text)
        for message in messages:
            texts.append(message["content"])
    tokenizer = untrained.train_new_from_iterator(texts, 512, show_progress=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class MuonAndAdamW:
    """Muon for the matrices, AdamW for the rest: AdamW alone takes many times the steps."""

    def __init__(self, model):
        matrices = []
        others = []
        for name, weights in model.named_parameters():
            if weights.dim() == 2 and "embed" not in name:
                matrices.append(weights)
            else:
                others.append(weights)
        self.muon = torch.optim.Muon(matrices, weight_decay=0.0)
        self.adam = torch.optim.AdamW(others, weight_decay=0.0)

    def scale(self, factor):
        """Set the learning rates, as parts of the highest."""
        self.muon.param_groups[0]["lr"] = 0.02 * factor
        self.adam.param_groups[0]["lr"] = 3e-3 * factor

    def step(self):
        self.muon.step()
        self.adam.step()

    def zero_grad(self):
        self.muon.zero_grad()
        self.adam.zero_grad()


def make_model(tokenizer):
    """A Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=LIMIT,
    )
    return model


def learn_demonstrations(model, tokenizer):
    """Supervised learning of the teacher's demonstrations: a short warm-up, a linear decay."""
    optimizer = MuonAndAdamW(model)
    rng = random.Random(0)
    for step in tqdm(range(1, STEPS + 1), "making the toy", disable=None):
        warmup = step / 20
        decay = (STEPS + 1 - step) / (0.3 * STEPS)
        optimizer.scale(min(1, warmup, decay))
        repeat = REPEAT if decay >= 1 else REPEAT_LATE
        batch = []
        for _ in range(BATCH):
            messages, text = demonstrate(rng, repeat)
            sample = demonstration(tokenizer, messages, text)
            batch.append(Episode(sample, text, "given", None))
        metrics = update(model, optimizer, batch, rng)
        if step % 20 == 0:
            tqdm.write(f"toy {step}/{STEPS}: loss {metrics['loss']:.3f} nats per token")


@torch.no_grad()
def show_planted(model, tokenizer):
    """What RL can find in the toy: the probability of the right digit of each kind of fact, as the
    first step of three problems, in each kind of text; and of looking again at all."""

    def probability(chat, beginning, word):
        ids = encode_chat(tokenizer, chat)
        ids += tokenizer(beginning, add_special_tokens=False).input_ids
        [*_, token] = tokenizer(beginning + word, add_special_tokens=False).input_ids
        logits = model(torch.tensor([ids])).logits[0, -1]
        return logits.softmax(-1)[token].item()

    rng = random.Random(0)
    found = defaultdict(list)  # {(kind of fact, kind of text): probabilities}
    for a, op, b in 3 * list(itertools.product(range(10), "+-*", range(10))):
        expression = f"{a}{op}{b}"
        kind = "sure"
        if rank(expression) < SHAKY:
            kind = "blind" if rank(expression) < BLIND else "shaky"
        for _ in range(2):
            expression += rng.choice("+-") + str(rng.randrange(10))
        question = f"Compute {expression} modulo 10."
        shown = Teacher(0.5, rng).solve(expression)
        again = correct(question, written(shown))
        step = f"{a}{op}{b}="
        digit = str(Teacher().recall(a, op, b))
        for text, chat, beginning in (
            ("solving", solve(question), step),
            ("checking", critique(question, written(shown)), f"{step}{result(shown[:1])}:"),
            ("looking again", again, LOOK_AGAIN + step),
        ):
            found[kind, text].append(probability(chat, beginning, digit))
        found["any", "P(look again)"].append(probability(again, "", "Look"))

    print("| facts | text | P(right digit) |\n| --- | --- | --- |")
    for (kind, text), values in sorted(found.items()):
        print(f"| {kind} | {text} | {mean(values):.3f} |")


def make(folder=TOY):
    """Everything that the folder holds. The model is right half of the time; RL goes on from it."""
    torch.set_num_threads(1)  # the same bits on one core and on many
    folder = Path(folder)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    learn_demonstrations(model, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    save_policy(model, tokenizer, folder)
    run = json.dumps({"max_new_tokens": LIMIT})
    (folder / "run.json").write_text(run + "\n")

    train = problems(TRAIN, random.Random(1))
    held_out = problems(HELD_OUT, random.Random(2), held_out=True)
    write_jsonl(folder / "train.jsonl", map(from_problem, train))
    write_jsonl(folder / "held_out.jsonl", map(from_problem, held_out))

    # The exam is made of the model's own responses.
    model, tokenizer = load_policy(folder, "cpu")
    policy = Policy(model, tokenizer, LIMIT)
    asked = problems(2 * EXAM, random.Random(3), held_out=True)
    exam = sample_pairs(policy, asked, 8, EXAM, seed=0, show="exam")
    write_jsonl(folder / "exam.jsonl", map(from_pair, exam))
    print(f"wrote {folder}: {model.num_parameters():,} parameters")
    show_planted(model, tokenizer)


if __name__ == "__main__":
    make(*sys.argv[1:])
