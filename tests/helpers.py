"""What several test files use."""

import contextlib
import functools
import io
import random
from unittest import mock

import torch
import transformers
from transformers import AutoModelForCausalLM

import rollout
import sample
import train
from details import data, fast, flags, policy
from details.data import from_pair
from details.errors import InputError
from reward import Pair, Problem
from rollout import Sample, Sampler, encode_chat, generate, load_policy
from toy import make

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much on a busy machine


patch = mock.patch.object


TOY = policy.TOY


def box(answer):
    """A response that consists of its final answer."""
    return f"\\boxed{{{answer}}}"


def close(a, b, tolerance=1e-6):
    """Equal in shape, and in value up to the tolerance."""
    a = torch.as_tensor(a, dtype=torch.float64)
    b = torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def fails(words, call, *args, kind=InputError, **options):
    """The call must raise an error or exit with one: one line that has all of `words`, cut at |."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call(*args, **options)
    except (kind, SystemExit) as error:
        message = str(error)
        assert "\n" not in message
        for word in words.split("|"):
            assert word in message, f"{word!r}: {message!r}"
        return error
    raise AssertionError(f"no error that names {words!r}")


@functools.lru_cache
def base():
    """The toy as (model, tokenizer), loaded once."""
    return load_policy("toy", "cpu")


def toy_sampler(temperature=1.0):
    return Sampler(*base(), 64, temperature)


# Of this problem nothing matters but the answer.
SEVEN = Problem("q", "7")


def a_sample(text="", role="", problem=SEVEN, stopped=True, **fields):
    """A sample whose tokens do not matter."""
    return Sample([1], [1], [0.0], stopped, text, role, problem, **fields)


def problems(count, seed=0, held_out=False):
    return make.problems(count, random.Random(seed), held_out)


def solved(problem):
    """The right solution to a toy problem, written out."""
    expression = problem.question.split()[1]
    return make.written(make.Teacher().solve(expression))


def static_pairs(asked):
    """Of each problem a right and a wrong response."""
    pairs = []
    for problem in asked:
        pairs += [Pair(problem, solved(problem), True), Pair(problem, box("x"), False)]
    return pairs


def row_of(problem):
    return {"question": problem.question, "answer": problem.answer}


def write(path, rows):
    """A JSONL file of dicts, problems or pairs; its path."""
    to_row = {Problem: row_of, Pair: from_pair, dict: dict}
    data.write_jsonl(path, [to_row[type(row)](row) for row in rows])
    return path


def lines(path):
    """The JSON objects of a file."""
    return data.read_jsonl(path, dict)


def rows_of(table):
    """The columns of each row of a table, with -> between them; ¶ is a new line."""
    return [row.replace("¶", "\n").split(" -> ") for row in table.strip("\n").split("\n")]


def printed_by(main, text="", *more):
    """Call a command line in this process; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        main([*text.split(), *map(str, more)])
    return printed.getvalue()


ON_TOY = f"--device cpu --eval-data {TOY}/held_out.jsonl --exam {TOY}/exam.jsonl"


def trained(out, text, *more):
    """Run train.py; the rows of metrics.jsonl, and what was printed."""
    printed = printed_by(train.main, ON_TOY + " --out", out, *text.split(), *more)
    return lines(out / "metrics.jsonl"), printed


def used(text, *more):
    """Run sample.py; what it printed."""
    return printed_by(sample.main, "--device cpu " + text, *more)


def arguments(text):
    """The flags of train.py."""
    return flags.train_flags(text.split(), train.METHODS)


def rewards_of(samples):
    return [sample.reward for sample in samples]


def attempts(*rows, second_stopped=True):
    """First and second attempts of (first text, is it right, second text, is it right)."""
    first = []
    second = []
    for first_text, first_right, second_text, second_right in rows:
        a = a_sample(first_text, "attempt 1", right=first_right)
        b = a_sample(second_text, "attempt 2", right=second_right, stopped=second_stopped, first=a)
        first.append(a)
        second.append(b)
    return first, second


def held_gradient(model):
    """What the parameters hold as their gradient, as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_of(loss, model=None):
    """The gradient of a loss for the parameters of the toy or another model."""
    model = model or base()[0]
    model.zero_grad()
    loss.backward()
    return held_gradient(model)


def same_gradient(seen, expected):
    """Equal up to the rounding of fp32."""
    distance = (seen - expected).norm() / expected.norm()
    assert distance < 1e-4


def plain_distributions(drawn, temperature, model):
    """Log-probs [tokens, vocabulary] of each of a sample's tokens, by a plain pass of
    the toy or another model: an independent path."""
    model = model or base()[0]
    ids = torch.tensor([drawn.prompt + drawn.tokens])
    logits = model(ids).logits[0, len(drawn.prompt) - 1 : -1]
    return (logits / (temperature or 1.0)).log_softmax(-1)


def plain_logprobs(drawn, temperature=1.0, model=None):
    """Those of the sample's tokens [tokens]."""
    indices = range(len(drawn.tokens))
    return plain_distributions(drawn, temperature, model)[indices, drawn.tokens]


def toy_rollout(n=6, count=4, temperature=1.0):
    """Samples of a real rollout of the toy with made-up rewards, some of them 0."""
    samples = rollout.respond(toy_sampler(temperature), problems(count, seed=3), n, seed=1)
    for index, made in enumerate(samples):
        made.reward = [1.0, -0.5, 0.0, 2.0][index % 4]
    return samples


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the toy's gradients and moves nothing."""

    def __init__(self):
        self.model, _ = base()
        self.model.zero_grad()
        super().__init__(self.model.parameters(), lr=1.0)
        self.gradients = []

    def step(self):
        self.gradients.append(held_gradient(self.model))


def learned(samples, text="", reference=None, grad_clip=1e9):
    """(metrics, the gradients of all optimizer steps) of an update of the toy under these flags."""
    recorder = Recorder()
    settings = arguments(text), toy_sampler(), reference, recorder
    with patch(train, "GRAD_CLIP", grad_clip):
        metrics = train.update(*settings, samples, random.Random(0))
    return metrics, recorder.gradients


def updated(samples, text="", **settings):
    """The same with one optimizer step, unless the flags say otherwise. Rewards are taken for
    advantages as they are, so that any advantage can be tried."""
    with patch(train, "advantages", lambda rewards, groups, std: torch.tensor(rewards)):
        return learned(samples, "--updates 1 " + text, **settings)


def judged(*judgements):
    """Critiques with (judgement, outcome of the response)."""
    return [
        a_sample(role="critique", pair=Pair(SEVEN, "", is_right), says_right=says_right)
        for says_right, is_right in judgements
    ]


def greedy_text(chat):
    """What the toy makes of a chat, by the sampler alone."""
    model, tokenizer = base()
    prompt = encode_chat(tokenizer, chat)
    (drawn,) = generate(model, [prompt], max_new_tokens=64, temperature=0)
    return tokenizer.decode(drawn.tokens[:-1])


def saved(folder, model=None, tokenizer=None):
    """The toy's folder with parts of it replaced."""
    policy.save_policy(model or base()[0], tokenizer or base()[1], folder)
    return folder


def files(folder, **contents):
    """Flags that name files with these rows: data=[...] is --data folder/data.jsonl."""
    argv = []
    for name, rows in contents.items():
        argv += ["--" + name.replace("_", "-"), write(folder / f"{name}.jsonl", rows)]
    return argv


def shown_rows(asked):
    """A demonstration of each problem, with a critique."""
    right = {"critique": "Conclusion: right"}
    return [{"question": p.question, "response": solved(p)} | right for p in asked]


fast.MANY = 1  # where LARGE is small, weights are packed for a single row, too


# Of what `tiny` makes.
KINDS = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral",
    "Gemma3",
    "GPT2",
    "Phi",
    "Gemma2",  # has a soft cap behind its head
    "GraniteMoe",  # scales its logits behind its head, and has experts
    "Bloom",  # has an attention of its own
    "DiffLlama",  # does more with its attention's result
]


def tiny(kind, **more):
    """A random decoder with 97 tokens; small windows, so that they matter."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "logits_scaling": 2.0,  # Granite's
        **more,
    }
    if kind in ("Gemma2", "Gemma3", "Mistral"):
        shape["sliding_window"] = 8
    if kind in ("Qwen3", "Gemma3"):
        shape["head_dim"] = 8
    if kind == "Gemma3":
        shape["num_hidden_layers"] = 4
        shape["layer_types"] = ["sliding_attention", "full_attention"] * 2
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=p.mean().item(), std=0.3 if p.dim() > 1 else 0.1)
    model.get_input_embeddings().weight.data[0] = 0.0  # as that of a padding token may be
    return model


def sharing(kind, dtype=torch.float32):
    """A `tiny` model whose rows share their prompts, as `load_policy` sets it up."""
    model = tiny(kind)
    model.compute_dtype = dtype
    rollout.settle_attention(model, kind)
    return model


@functools.lru_cache
def model_of(kind, dtype=torch.float32):
    """A `sharing` model, made once."""
    with contextlib.redirect_stdout(io.StringIO()):
        return sharing(kind, dtype)


def small_device(module, name, rows):
    """A device on which that function runs out of memory with more rows, its second argument."""
    real = getattr(module, name)

    def work(model, given, *more):
        if len(given) > rows:
            raise torch.OutOfMemoryError("out of memory: a small device")
        return real(model, given, *more)

    return patch(module, name, side_effect=work)


def ragged():
    """Prompts of different lengths, two of them equal."""
    rng = random.Random(1)
    lengths = [rng.randrange(1, 30) for _ in range(7)]
    prompts = [rng.choices(range(3, 97), k=length) for length in lengths]
    return [*prompts, prompts[0]]
