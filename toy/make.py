"""Make the toy again: the model folder, train.jsonl, held_out.jsonl and exam.jsonl.

    python -m toy.make [FOLDER]       (half an hour; the same bits on the same machine)
    python -m toy.make --hard         hard.jsonl, hard_held_out.jsonl and hard_exam.jsonl: problems
                                      most of whose responses are wrong (a minute)

Last-digit arithmetic with precedence, one step a line. The teacher whose demonstrations the model
learns knows the method, and seven in ten of the 300 facts (`7*8` ends in 6) always. What he makes
of the others depends on what he is doing: some that he never gets right in solving he recalls every
other time when he checks a step, and some that he knows in solving he mostly doubts in checking.
Asked to correct a solution he mostly repeats it, as pretrained models do. The model inherits all of
this, and outcome rewards lead past it. What is planted: toy/planted.py.
"""

import json
import random
import tempfile
import zlib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from critique import correct_prompt, critique_prompt, solve_prompt
from details.data import from_pair, from_problem, mean, run_command, to_problem, write_jsonl
from details.policy import TOY, save_policy
from details.start import sample_pairs
from details.supervised import demonstration, imitate
from rollout import Sampler, load_policy, respond
from sample import pass_at_n
from toy.sound import last_digit, solve
from train import mini_batches

STEPS = 1200  # of supervised learning
LATE_STEPS = 240  # more, in which he has come to doubt some facts in checking
BATCH = 128  # demonstrations in a step
SHARES = {  # of the kinds of demonstrations
    "solve": 0.23,
    "criticise": 0.27,
    "correct with": 0.08,
    "correct": 0.42,
}
REPEAT = 0.66  # of the corrections without a critique that only repeat the solution
REPEAT_LATE = 0.9  # the same from seven tenths of STEPS on
FACTS = {  # percent of the facts that are of a kind; the others he is sure of
    "blind": 12,
    "shaky": 12,
    "doubted": 6,
}
# How often facts of these kinds come out wrong. In checking he knows what in solving he does not,
# and the reverse: so a model cannot get everything right by recalling always as in checking.
SOLVING = {"blind": 1.0, "shaky": 0.82}
CHECKING = {"blind": 0.49, "shaky": 0.49, "doubted": 0.82}
LOOKING_AGAIN = {"blind": 0.6, "shaky": 0.6, "doubted": 0.2}
SHOWN = {"blind": 0.5, "shaky": 0.5, "doubted": 0.5}  # in solutions that are to be criticised
LIMIT = 64  # of a completion, in tokens
LOOK_AGAIN = "Look again.\n"  # how a correction begins that is no repetition
TRAIN = 128  # problems
HELD_OUT = 512  # problems
EXAM = 512  # pairs


def kind_of(fact):
    """How well he knows a fact; a hash of it decides."""
    rank = zlib.crc32(fact.encode()) % 100
    for kind, percent in FACTS.items():
        if rank < percent:
            return kind
        rank -= percent
    return "sure"


class Teacher:
    """Recalls facts, each once a demonstration: what he has in mind he sticks to. doubts: how often
    facts of a kind come out wrong, 0 where it says nothing."""

    def __init__(self, doubts=None, rng=None):
        self.doubts = doubts or {}
        self.rng = rng
        self.mind = {}  # {fact: digit}

    def recall(self, a, op, b):
        """The last digit of `a op b`, or the wrong digit that he always takes it for."""
        fact = f"{a}{op}{b}"
        if fact in self.mind:
            return self.mind[fact]
        digit = last_digit(a, op, b)
        doubt = self.doubts.get(kind_of(fact))
        if doubt and self.rng.random() < doubt:
            # Always the same wrong digit, by another part of the hash.
            digit = (digit + 1 + zlib.crc32(fact.encode()) // 100 % 9) % 10
        self.mind[fact] = digit
        return digit

    def solve(self, expression, slip=0.0):
        """The steps of '9-7*2-5', as he recalls them. slip: how often a result goes astray at
        random."""

        def recall(a, op, b):
            if slip and self.rng.random() < slip:
                return self.rng.randrange(10)
            return self.recall(a, op, b)

        return solve(expression, recall)

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
            found[expression] = to_problem({"question": question, "answer": str(answer)})
    return list(found.values())


def demonstrate(rng, repeat=REPEAT, late=False):
    """One demonstration, (messages, completion), of one of the four kinds. late: with doubts that
    he did not have before."""

    def teacher(doubts):
        if not late:
            doubts = {kind: doubt for kind, doubt in doubts.items() if kind != "doubted"}
        return Teacher(doubts, rng)

    question = problems(1, rng)[0].question
    expression = question.split()[1]
    kinds = list(SHARES)
    kind = rng.choices(kinds, SHARES.values())[0]
    if kind == "solve":
        steps = teacher(SOLVING).solve(expression)
        return solve_prompt(question), written(steps)

    # A solution that may be wrong, and a critique of it.
    slip = rng.choice([0.0, 0.3])
    steps = teacher(SHOWN).solve(expression, slip)
    shown = written(steps)
    critic = teacher(CHECKING)
    check = critic.criticise(steps)
    if kind == "criticise":
        return critique_prompt(question, shown), check
    if kind == "correct with":
        corrected = critic.solve(expression)
        return correct_prompt(question, shown, check), written(corrected)

    # Without a critique.
    chat = correct_prompt(question, shown)
    if rng.random() < repeat:
        return chat, shown
    corrected = teacher(LOOKING_AGAIN).solve(expression)
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


def learn_demonstrations(model, tokenizer, steps, peak, falling, seed, late=False):
    """Supervised learning of the teacher's demonstrations. peak: the learning rates, as parts of
    the highest; falling: the share of the steps, at the end, in which they fall."""
    optimizer = MuonAndAdamW(model)
    rng = random.Random(seed)
    for step in tqdm(range(1, steps + 1), "making the toy", disable=None):
        warmup = step / 20
        decay = (steps + 1 - step) / (falling * steps)
        optimizer.scale(peak * min(1, warmup, decay))
        repeat = REPEAT
        if late or decay < 1:
            repeat = REPEAT_LATE
        batch = []
        for _ in range(BATCH):
            messages, text = demonstrate(rng, repeat, late)
            batch.append(demonstration(tokenizer, messages, text))
        metrics = imitate(model, optimizer, mini_batches(batch, 1, rng))
        if step % 20 == 0:
            tqdm.write(f"toy {step}/{steps}: loss {metrics['loss']:.3f} nats per token")


def harder(sampler, count, rng, held_out=False):
    """`count` problems of which most responses are wrong: of seven in ten at most one of four is
    right, of the others two or three are. So there is something to learn from."""
    wanted = {"hard": round(0.7 * count)}
    wanted["half known"] = count - wanted["hard"]
    tried = problems(8 * count, rng, held_out)
    responses = respond(sampler, tried, 4, seed=0)
    found = []
    for index, problem in enumerate(tried):
        right = sum(response.right for response in responses[4 * index : 4 * index + 4])
        kind = "hard" if right <= 1 else "half known"
        if right < 4 and wanted[kind] > 0:
            wanted[kind] -= 1
            found.append(problem)
    assert len(found) == count, f"missing: {wanted}"
    return found


def make_hard(folder):
    """hard.jsonl, hard_held_out.jsonl and hard_exam.jsonl, chosen by what the folder's model gets
    wrong; then how much of the held-out ones it gets right, in responses drawn anew."""
    torch.set_num_threads(1)
    sampler = Sampler(*load_policy(folder, "cpu"), LIMIT)
    train = harder(sampler, TRAIN, random.Random(4))
    held_out = harder(sampler, HELD_OUT, random.Random(5), held_out=True)
    exam = sample_pairs(sampler, held_out, 8, EXAM, seed=0)
    write_jsonl(folder / "hard.jsonl", map(from_problem, train))
    write_jsonl(folder / "hard_held_out.jsonl", map(from_problem, held_out))
    write_jsonl(folder / "hard_exam.jsonl", map(from_pair, exam))
    print(f"{len(train)} problems, {len(held_out)} held out, {len(exam)} pairs")
    for name, asked in (("train", train), ("held out", held_out)):
        drawn = respond(sampler, asked, 8, seed=1)
        greedy = respond(sampler.greedy(), asked, 1, seed=0)
        accuracies = f"sampled {mean(e.right for e in drawn):.3f}, pass@8 {pass_at_n(drawn, 8):.3f}"
        print(f"{name}: {accuracies}, greedy {mean(e.right for e in greedy):.3f}")


def make(folder):
    """Everything that the folder holds. The model is right half of the time; RL goes on from it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same bits on one core and on many
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    learn_demonstrations(model, tokenizer, STEPS, peak=1.0, falling=0.3, seed=0)
    learn_demonstrations(model, tokenizer, LATE_STEPS, peak=0.4, falling=0.5, seed=7, late=True)
    save_policy(model, tokenizer, folder)
    run = json.dumps({"max_new_tokens": LIMIT})
    (folder / "run.json").write_text(run + "\n")

    train = problems(TRAIN, random.Random(1))
    held_out = problems(HELD_OUT, random.Random(2), held_out=True)
    write_jsonl(folder / "train.jsonl", map(from_problem, train))
    write_jsonl(folder / "held_out.jsonl", map(from_problem, held_out))

    # The exam is made of the model's own responses.
    model, tokenizer = load_policy(folder, "cpu")
    sampler = Sampler(model, tokenizer, LIMIT)
    asked = problems(2 * EXAM, random.Random(3), held_out=True)
    exam = sample_pairs(sampler, asked, 8, EXAM, seed=0)
    write_jsonl(folder / "exam.jsonl", map(from_pair, exam))
    print(f"wrote {folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=TOY)
    parser.add_argument("--hard", action="store_true", help="only the harder problems")
    args = parser.parse_args()
    program = make_hard if args.hard else make
    run_command(program, args.folder)
