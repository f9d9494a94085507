"""The tests: `python test_all.py [NAME ...]` runs all of them, or those whose names contain a NAME; pytest finds them too.

Values are worked out by hand or come from an independent path: `model.generate` and teacher forcing against the
sampler, autograd against closed forms. No network and no file outside the repository is needed.
"""

import contextlib
import copy
import io
import json
import math
import random
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import critique
import reward
import rollout
import sample
import train
from reward import Pair, PairCache, Problem
from rollout import InputError, Sample


# ------------------------------------------------------------------------------------------------------- helpers


def close(a, b, tolerance=1e-6):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance), f"{a} is not {b}"


def fails(call, *words):
    """The call must raise InputError, or exit with an error, in one line that contains all the words."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call()
    except (InputError, SystemExit) as error:
        message = str(error)
        assert message and message != "0" and "\n" not in message, repr(message)
        for word in words:
            assert word in message, f"{word!r} is not in {message!r}"
        return
    raise AssertionError(f"no error that names {words}")


def tiny(kind, **options):
    """A random decoder of transformers with 97 tokens of vocabulary; small windows, so that they matter."""
    torch.manual_seed(0)
    common = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    special = {
        "Gemma3": dict(
            head_dim=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_hidden_layers=4,
        ),
        "Mistral": dict(sliding_window=8),
        "Qwen3": dict(head_dim=8),
    }.get(kind, {})
    if kind == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=97,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            bos_token_id=1,
            eos_token_id=2,
        )
    else:
        name = "Gemma3TextConfig" if kind == "Gemma3" else kind + "Config"
        config = getattr(transformers, name)(**common | special | options)
    model = getattr(
        transformers,
        {"GPT2": "GPT2LMHead", "Gemma3": "Gemma3For"}.get(kind, kind + "For").replace("For", "")
        + ("Model" if kind == "GPT2" else "ForCausalLM"),
    )(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else None
    return model


def ragged(count=7, longest=30):
    """Prompts of different lengths, two of them equal."""
    rng = random.Random(1)
    prompts = [
        [rng.randrange(3, 97) for _ in range(rng.randrange(1, longest))] for _ in range(count)
    ]
    return prompts + [prompts[0]]


@lru_cache
def toy():
    return rollout.load_policy("toy", "cpu")


@lru_cache
def toy_file(count):
    """A JSONL file of toy problems; the last tenth is held out by train.py."""
    path = Path(tempfile.mkdtemp()) / "problems.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": p.question, "answer": p.answer}) + "\n"
            for p in reward.toy_problems(count, 3)
        )
    )
    return str(path)


def trained(folder, *flags):
    """Run train.py in this process; returns the rows of metrics.jsonl and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        train.main(["--out", str(folder), "--device", "cpu", *map(str, flags)])
    return [json.loads(line) for line in open(Path(folder) / "metrics.jsonl")], printed.getvalue()


def recipe_run(*flags):
    """A Run on the toy for calling recipes by hand."""
    args = train.parse_args(list(map(str, flags)))
    return train.Run(args, *toy(), PairCache(args.cache), stage1_steps=args.stage1_steps or 0)


# ------------------------------------------------------------------------------------------------------- rollout

KINDS = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma3", "GPT2"]


def test_greedy_tokens_equal_model_generate():
    for kind in KINDS:
        model, prompts = tiny(kind), ragged()
        ids, mask = rollout.left_pad(prompts, "cpu")
        theirs = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=[2, 5],
            pad_token_id=0,
        )
        ours = rollout.generate(model, prompts, max_new_tokens=40, temperature=0, stop=(2, 5))
        for sample_, row, prompt in zip(ours, theirs[:, ids.shape[1] :].tolist(), prompts):
            end = next((i + 1 for i, token in enumerate(row) if token in (2, 5)), 40)
            assert sample_.tokens == row[:end], (kind, sample_.tokens, row)
            assert sample_.prompt == prompt and sample_.stopped == (sample_.tokens[-1] in (2, 5))


def test_sampled_logprobs_equal_teacher_forcing():
    ragged_ends = 0
    for kind in KINDS:
        model = tiny(kind)
        for options in (
            dict(),
            dict(temperature=0.7),
            dict(temperature=0.0),
            dict(top_k=5),
            dict(temperature=1.3, top_p=0.6),
            dict(top_k=9, top_p=0.8),
        ):
            samples = rollout.generate(
                model, ragged(), n=3, max_new_tokens=25, stop=(2, 5, 7), seed=3, **options
            )
            ragged_ends += len({len(s.tokens) for s in samples}) > 1
            for s, scored in zip(samples, rollout.logprobs(model, samples, **options)):
                assert len(s.tokens) == len(s.logprobs) == len(scored)
                close(scored.detach(), s.logprobs, 2e-4)
    assert ragged_ends > 20, "rows must stop at different lengths for this test"


def test_teacher_forcing_equals_a_plain_forward_pass():
    model = tiny("Llama")
    samples = rollout.generate(model, ragged(), n=2, max_new_tokens=12, seed=1, temperature=0.8)
    for s, scored in zip(samples, rollout.logprobs(model, samples, temperature=0.8)):
        logits = model(torch.tensor([s.prompt + s.tokens])).logits[0, len(s.prompt) - 1 : -1] / 0.8
        close(
            scored.detach(), logits.log_softmax(-1)[range(len(s.tokens)), s.tokens].detach(), 1e-4
        )


def test_sampling_follows_the_distribution():
    model, prompt, n = tiny("Qwen2"), [[5, 6, 7]], 20000
    for options in (dict(), dict(temperature=0.5), dict(top_k=4), dict(top_p=0.7)):
        with torch.no_grad():
            probs = (
                rollout.sampling_logprobs(model(torch.tensor(prompt)).logits[0, -1], **options)
                .exp()
                .double()
            )
        drawn = [
            s.tokens[0]
            for s in rollout.generate(model, prompt, n=n, max_new_tokens=1, seed=5, **options)
        ]
        counts = torch.bincount(torch.tensor(drawn), minlength=97).double()
        assert counts[probs == 0].sum() == 0
        deviation = (counts - n * probs).abs() / (n * probs * (1 - probs) + 1).sqrt()
        assert deviation.max() < 5, (
            f"{options}: a token is {deviation.max():.1f} standard deviations off"
        )
    both = [
        tuple(s.tokens)
        for s in rollout.generate(model, prompt, n=n, max_new_tokens=2, seed=6, stop=())
    ]
    common = max(
        {a for a, _ in both}, key=[a for a, _ in both].count
    )  # the second token is drawn afresh, given the first
    with torch.no_grad():
        probs = model(torch.tensor([prompt[0] + [common]])).logits[0, -1].softmax(-1).double()
    counts = torch.bincount(
        torch.tensor([b for a, b in both if a == common]), minlength=97
    ).double()
    assert (
        (counts - counts.sum() * probs).abs() / (counts.sum() * probs * (1 - probs) + 1).sqrt()
    ).max() < 5


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    close(rollout.sampling_logprobs(logits, top_k=2).exp(), [2 / 3, 1 / 3, 0, 0])
    close(rollout.sampling_logprobs(logits, top_p=0.7).exp(), [2 / 3, 1 / 3, 0, 0])
    close(rollout.sampling_logprobs(logits, top_p=0.8).exp(), [5 / 9, 5 / 18, 1 / 6, 0])
    close(
        rollout.sampling_logprobs(logits, temperature=0.5).exp(),
        torch.tensor([0.25, 0.0625, 0.0225, 0.01]) / 0.345,
    )
    close(rollout.sampling_logprobs(logits, temperature=0.0).exp(), [0.5, 0.25, 0.15, 0.1])


def test_pad_token_is_of_no_account():
    """A pad token that equals EOS, or that has probability mass and is sampled, changes nothing: masks go by length."""
    model = tiny("Llama")
    prompts = [[0, 0, 5], [2, 9], [0], [7, 8, 9, 10]]  # token 0 is what rows are padded with
    for pad in (2, 0):
        model.config.pad_token_id = model.generation_config.pad_token_id = pad
        samples = rollout.generate(model, prompts, n=200, max_new_tokens=12, stop=(2,), seed=4)
        assert any(0 in s.tokens for s in samples) and any(s.tokens[-1] == 2 for s in samples)
        for s, scored in zip(samples, rollout.logprobs(model, samples)):
            assert s.stopped == (s.tokens[-1] == 2) and 2 not in s.tokens[:-1]
            assert len(s.tokens) == 12 or s.stopped
            close(scored.detach(), s.logprobs, 2e-4)


def test_seed_and_parts():
    """The same seed gives the same tokens, also when memory forces parts; order is prompt-major; another seed differs."""
    model, prompts = tiny("Mistral"), ragged()
    whole = rollout.generate(model, prompts, n=4, max_new_tokens=20, stop=(2, 5), seed=9)
    again = rollout.generate(model, prompts, n=4, max_new_tokens=20, stop=(2, 5), seed=9)
    sizes = []
    parts = rollout.generate(
        model,
        prompts,
        n=4,
        max_new_tokens=20,
        stop=(2, 5),
        seed=9,
        memory=100_000,
        progress=sizes.append,
    )
    other = rollout.generate(model, prompts, n=4, max_new_tokens=20, stop=(2, 5), seed=10)
    assert whole == again and len(sizes) > 3 and sum(sizes) == len(whole) == 32
    assert [s.tokens for s in whole] == [s.tokens for s in parts] != [s.tokens for s in other]
    assert [s.prompt for s in whole] == [p for p in prompts for _ in range(4)]
    assert whole[0].tokens != whole[1].tokens


def test_out_of_memory_halves_the_batch():
    model, real, sizes = tiny("Llama"), rollout._sample, []

    def small_device(prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 5:
            raise torch.OutOfMemoryError("pretended")
        return real(prompts, *rest)

    expected = rollout.generate(model, ragged(), n=3, max_new_tokens=5)
    rollout._sample = small_device
    try:
        got = rollout.generate(model, ragged(), n=3, max_new_tokens=5)
    finally:
        rollout._sample = real
    assert [s.tokens for s in got] == [s.tokens for s in expected] and sizes[:4] == [24, 12, 6, 3]


def test_each_distinct_prompt_is_prefilled_once():
    model, seen = tiny("Llama"), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rollout.generate(model, [[5, 6, 7], [8, 9], [5, 6, 7]], n=4, max_new_tokens=6, stop=())
    hook.remove()
    assert seen[0] == (2, 3) and seen[1:] == [(12, 1)] * 5, seen


def test_stopped_rows_leave_the_batch():
    model, rows = tiny("Llama"), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    samples = rollout.generate(model, [[5, 6]], n=60, max_new_tokens=30, stop=tuple(range(2, 20)))
    hook.remove()
    alive = [sum(len(s.tokens) > t for s in samples) for t in range(30)]
    assert rows[1] <= 60 and all(a <= r <= a / 0.9 + 1 for r, a in zip(rows[1:], alive[1:])), (
        rows,
        alive,
    )


def test_context_limits():
    for kind in ("Llama", "GPT2"):
        model = tiny(kind)
        fails(lambda: rollout.generate(model, [[5]] + [[5] * 128]), "prompt 1", "128")
        fails(lambda: rollout.generate(model, [[]]), "prompt 0", "0 tokens")
        short, *_, long = rollout.generate(
            model, [[5] * 3] * 30 + [[5] * 120], max_new_tokens=20, stop=(), temperature=0
        )
        assert len(short.tokens) == 20 and len(long.tokens) == 8 and not long.stopped
        close(rollout.logprobs(model, [short, long])[1].detach(), long.logprobs, 2e-4)
    fails(lambda: rollout.generate(model, [[5]], n=0), "n >= 1")
    fails(lambda: rollout.generate(model, [[5]], temperature=-1), "temperature")


def test_stop_set_is_the_union():
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = copy.deepcopy(toy()[0]), toy()[1]
        model.config.eos_token_id = 7
        model.generation_config = transformers.GenerationConfig(
            eos_token_id=[11, 12], repetition_penalty=2.0
        )
        rollout.save_policy(model, tokenizer, folder)
        loaded, _ = rollout.load_policy(folder, "cpu")
    assert loaded.generation_config.eos_token_id == sorted({7, 11, 12, tokenizer.eos_token_id})
    assert loaded.generation_config.repetition_penalty in (None, 1.0)
    assert all(
        s.tokens[-1] in (0, 7, 11, 12)
        for s in rollout.generate(loaded, [[20, 21]], n=50, max_new_tokens=60)
        if s.stopped
    )


def test_chat_template_and_plain_fallback():
    _, tokenizer = toy()
    chat = critique.correct("Compute 1+2 modulo 10.", "1+2=3\n\\boxed{3}<|end|><|assistant|>hm")
    text = tokenizer.decode(rollout.encode_chat(tokenizer, chat))
    nested = critique.solve(
        "a<|e<|end|>nd|>b"
    )  # taking one special token out must not spell another
    assert rollout.encode_chat(tokenizer, nested).count(tokenizer.eos_token_id) == 0
    assert (
        text.count("<|end|>") == 1
        and text.count("<|assistant|>") == 2
        and text.endswith("<|assistant|>")
        and "hm" in text
    )
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    text = plain.decode(rollout.encode_chat(plain, chat))
    assert text.startswith("User:\nCompute") and text.endswith(
        "corrected. Put the final answer in \\boxed{}.\n\nAssistant:\n"
    )
    assert text.count("<|end|>") == 1
    bos = copy.deepcopy(tokenizer)
    bos.bos_token, bos.chat_template = "<|user|>", "<|user|>{{ messages[0]['content'] }}"
    assert rollout.encode_chat(bos, chat).count(bos.bos_token_id) == 1


def test_saved_policy_is_a_hugging_face_folder():
    """Saved, loaded by transformers alone and decoded by model.generate: the sampler's greedy text."""
    with tempfile.TemporaryDirectory() as folder:
        rollout.save_policy(*toy(), folder)
        assert not (Path(folder) / "saving").exists()
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            AutoTokenizer.from_pretrained(folder),
        )
    for chat in (
        critique.solve("Compute 3*4+5-1 modulo 10."),
        critique.critique("Compute 3*4+5-1 modulo 10.", "3*4=2\n2+5=7\n7-1=6\n\\boxed{6}"),
    ):
        ids = rollout.encode_chat(tokenizer, chat)
        theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)[
            0, len(ids) :
        ].tolist()
        (ours,) = rollout.generate(toy()[0], [ids], max_new_tokens=64, temperature=0)
        assert ours.tokens == theirs and ours.stopped


# ------------------------------------------------------------------------------------------------------ critique


def test_judgement_table():
    for text, expected in [
        ("Conclusion: right", True),
        ("Conclusion: wrong", False),
        ("conclusion:WRONG.", False),
        ("**Conclusion:** right", True),
        ("**Conclusion: right**", True),
        ("## Conclusion\nwrong, since 3*4 is 12", False),
        ("Conclusion: \\boxed{right}", True),
        ("Conclusion - \\boxed{\\text{Wrong}}", False),
        ("Conclusion: right\nConclusion: wrong", False),
        ("Conclusion: `right`!", True),
        ("Conclusion: wrong ... so\nConclusion:  right   \n\nThanks", True),
        ("Conclusion: the solution is right.", True),
        ("The conclusion is: wrong", False),
        ("Conclusion: _right_", True),
        ("Conclusion: rightly so", None),
        ("right", None),
        ("", None),
        ("Conclusion: unclear", None),
        ("Conclusion: not right", None),
        ("Conclusion: right or wrong", None),
        ("Conclusion: right|wrong", None),
        ("Conclusion: right / wrong", None),
        ("Conclusion: wrong\n\nRight answer: 5", False),
        ("In conclusion, it went right", None),
        ("Conclusion: maybe\nConclusion: right", True),
        ("Conclusion: wrong (right answer: 5)", False),
        ("Conclusion: **right** or **wrong**", None),
        ("Conclusion: right, or wrong", None),
        ("Conclusion: right-or-wrong", None),
        ("Conclusion: right (or wrong)", None),
        ("Conclusion: the answer is wrong", False),
        ("Conclusion: right\nConclusion: maybe", True),
    ]:
        assert critique.judgement(text) is expected, (text, expected)
    start = time.time()
    for hostile in (
        "conclusion" * 100_000,
        "conclusion " * 100_000,
        "conclusion:" + "*" * 10**6,
        "conclusion: is: is: is" * 50_000,
    ):
        critique.judgement(hostile)
    assert time.time() - start < 2, "reading a judgement must take linear time"


def test_prompts():
    question, response = "How many {x}?", "It is \\boxed{5} {"
    assert question in critique.solve(question)[0]["content"]
    asked = critique.critique(question, response)[0]["content"]
    assert question in asked and response in asked and "Conclusion: right" in asked
    plain, helped = (
        critique.correct(question, response),
        critique.correct(question, response, "Conclusion: wrong {"),
    )
    assert (
        [m["role"] for m in plain] == [m["role"] for m in helped] == ["user", "assistant", "user"]
    )
    assert (
        plain[:2]
        == helped[:2]
        == critique.solve(question) + [{"role": "assistant", "content": response}]
    )
    assert (
        "Conclusion: wrong {" in helped[2]["content"]
        and "\\boxed{}." in helped[2]["content"]
        and "\\boxed{}." in plain[2]["content"]
    )


# -------------------------------------------------------------------------------------------------------- reward

ANSWERS = [  # response, reference, right?
    (r"\boxed{42}", "42", 1),
    (r"\boxed{41} no, \boxed{42}", "42", 1),
    (r"\boxed{42} no, \boxed{41}", "42", 0),
    ("it is 42.", "42", 1),
    (r"\boxed{\boxed{5}}", "5", 1),
    (r"\boxed {5}", "5", 1),
    (r"\boxed{\text{about }\{5\}}", "5", 1),
    (r"\boxed{5} and \boxed{6", "5", 1),
    (r"\boxed{}", "0", 0),
    ("", "0", 0),
    ("no number", "0", 0),
    ("#### 42", "blah <<6*7=42>> #### 42", 1),
    ("#### 1,200 miles", "#### 1200", 1),
    ("The answer is $5.00.", "5", 1),
    ("The answer is 5 apples, not 6.", "5", 1),
    ("The answer is 3 + 4 = 7.", "7", 1),
    ("the answer is **42**", "42", 1),
    ("The answer is:\n42", "42", 1),
    ("Answer: 7", "7", 1),
    ("10 apples, 20 pears", "20", 1),
    ("70,000 dollars", "70000", 1),
    (r"\boxed{1{,}000}", "1000", 1),
    (r"\boxed{1\,000}", "1,000", 1),
    ("1,000,000", "1000000", 1),
    (r"\boxed{\$1,234.50}", "1234.5", 1),
    (r"\boxed{50\%}", "50", 1),
    (r"\boxed{50\%}", "0.5", 0),
    ("costs £3.20", "3.2", 1),
    ("so €12.", "12", 1),
    (r"\boxed{25\text{ cm}^2}", "25", 1),
    (r"\boxed{60 \text{ km/h}}", "60", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{12\ \mathrm{hours}}", "12", 1),
    (r"\boxed{x = 5}", "5", 1),
    (r"\boxed{5x+1}", "5", 0),
    (r"\boxed{9**9**9}", "9", 0),
    ("9**9**9", "387420489", 0),
    (r"\boxed{3 \times 10^5}", "3", 0),
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    (r"\boxed{\dfrac{3}{4}}", "3/4", 1),
    (r"\boxed{\frac12}", "0.5", 1),
    (r"\boxed{1\frac{1}{2}}", "1.5", 1),
    (r"\boxed{1 1/2}", "3/2", 1),
    (r"about $\frac{7}{2}$ of it", "3.5", 1),
    (r"\boxed{\left( \frac { 1 } { 2 } \right)}", "1/2", 1),
    (r"\boxed{2/4}", "1/2", 1),
    (r"\boxed{\tfrac{10}{4}}", "2.5", 1),
    (r"\boxed{1/0}", "0", 0),
    (r"\boxed{\frac{1}{0}}", "0", 0),
    ("1/3", "0.3333333333", 0),
    ("0.1", "1/10", 1),
    (r"\boxed{-\frac{1}{2}}", "-0.5", 1),
    (r"\boxed{\frac{-1}{2}}", "-1/2", 1),
    (r"x=\frac{-3}{-4}", "0.75", 1),
    (r"\boxed{ - \, 5 }", "-5", 1),
    ("\u22125", "-5", 1),
    ("-$5", "-5", 1),
    ("$-5", "-5", 1),
    ("+7", "7", 1),
    ("10-5", "5", 1),
    ("10-5", "-5", 0),
    ("-0", "0", 1),
    ("5", "-5", 0),
    ("5.", "5", 1),
    ("3.50", "3.5", 1),
    ("007", "7", 1),
    (".5", "1/2", 1),
    (r"\boxed{5\!\!}", "5", 1),
    (r"\boxed{\;5~}", "5", 1),
    (r"\boxed{(1, 2)}", "(1,2)", 1),
    (r"\boxed{(1,3)}", "(1,2)", 0),
    (r"\boxed{x+1}", "x + 1", 1),
    (r"\boxed{x+1}", "x+2", 0),
    (r"\boxed{\text{Blue}}", "blue", 1),
    ("The answer is blue.", "Blue", 1),
    ("blue", "red", 0),
    (r"\boxed{5}", r"so \boxed{5}", 1),
    (r"\boxed{2}", r"\sqrt{2}", 0),
    (r"\boxed{\sqrt{2}}", r"\sqrt{2}", 1),
    (r"\boxed{4}", r"\frac{\pi}{4}", 0),
    (r"\boxed{3}", r"3\pi", 0),
    (r"\boxed{5}", r"(-\infty,5]", 0),
    (r"\boxed{2y}", "2x", 0),
    (r"\boxed{2x}", "2x", 1),
    (r"\boxed{5-x}", "5", 0),
    (r"\boxed{x\neq 5}", "5", 0),
    (r"\boxed{x=\pm 5}", "5", 0),
    (r"\boxed{5!}", "5", 0),
    (r"\boxed{n/2}", "2", 0),
    (r"\boxed{\frac{x}{2}}", "2", 0),
    (r"\boxed{.5}", "0.5", 1),
    ("#### .5", "1/2", 1),
    ("The answer is $\\frac{\\pi}{4}$", "4", 0),
    (r"\boxed{}", "text ####", 0),
    ("The answer is .", "$", 0),
    ("#### Step 2: add\nThe answer is 42.", "42", 1),
    ("The answer isn't 5, it is 6", "6", 1),
    (r"\boxed{5 m}", "5", 1),
    (r"\boxed{5 \text{ boys}}", "5", 1),
]


def test_is_correct_table():
    for response, reference, right in ANSWERS:
        assert reward.is_correct(response, reference) is bool(right), (
            response,
            reference,
            right,
            reward.final_answer(response),
        )


def test_hostile_text_takes_linear_time():
    million = 10**6
    for text in [
        "9" * million,
        "9**9**9",
        "{" * million,
        "\\boxed{" * (million // 7),
        "\\boxed{" + "{" * million,
        " " * million,
        "1 " * (million // 2),
        "\\frac{" * (million // 6),
        "#" * million,
        "answer is " * (million // 10),
        "1,111" * (million // 5),
        "1/" * (million // 2),
        "\\boxed{" + "9" * million + "}",
        "\\frac" + " " * million,
        "-" * million,
        "the answer is " + "9" * million,
        "5" + " " * million + "/",
    ]:
        start = time.time()
        assert not reward.is_correct(text, "9") or text == "9**9**9"
        reward.is_correct("9", text)
        assert time.time() - start < 2, f"{text[:20]!r}... took {time.time() - start:.1f} s"


def test_equations_1_to_6():
    assert (
        reward.response_reward("so \\boxed{7}", "7") == 1
        and reward.response_reward("so \\boxed{8}", "7") == 0
    )  # eq. 1
    for judged, right, expected in [
        (True, True, 0.7),
        (False, False, 0.7),
        (True, False, 0),
        (False, True, 0),
        (None, True, 0),
        (None, False, 0),
    ]:
        assert reward.critique_reward(judged, right) == expected  # eq. 2
    assert [reward.reweighted_reward(r, r, 0.25) for r in (True, False)] == [
        0.35 / 0.25,
        0.35 / 0.75,
    ]  # eq. 3
    assert (
        reward.reweighted_reward(True, False, 0.25)
        == reward.reweighted_reward(None, True, 0.25)
        == 0
    )
    close(reward.denoising_reward(True, [True, False, True, True]), 0.075)  # eq. 4
    close(reward.denoising_reward(False, [True, False, True, True]), 0.525)
    assert reward.denoising_reward(None, [True]) == 0 == reward.denoising_reward(False, [False])
    assert [reward.critique_reward(r, r, 0.6, 0.8) for r in (True, False)] == [0.6, 0.8]  # eq. 5
    assert [reward.critique_reward(r, r, 0.8, 0.6) for r in (True, False)] == [0.8, 0.6]  # eq. 6
    assert [reward.shaped_reward(a, b, 10) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))] == [
        0,
        11,
        -10,
        1,
    ]  # SCoRe


def test_eq_3_balances_the_labels():
    """With accuracy a, a critic that is always right earns 0.35 from right and 0.35 from wrong responses on average."""
    for a in (0.1, 0.5, 0.9):
        close(
            [
                a * reward.reweighted_reward(True, True, a),
                (1 - a) * reward.reweighted_reward(False, False, a),
            ],
            [0.35, 0.35],
        )


def test_filter_and_cache():
    problems = [Problem(f"q{i}", "1") for i in range(50)]
    rng = random.Random(0)
    groups = [
        [Pair(p, f"{i}.{j}", rng.random() < 0.3) for j in range(5)] for i, p in enumerate(problems)
    ] + [[]]
    kept = reward.filter_pairs(groups, rng)
    mixed = [g for g in groups if len({p.right for p in g}) == 2]
    assert (
        0 < len(mixed) < 50
        and len(kept) == 2 * len(mixed)
        and sum(p.right for p in kept) == len(mixed)
    )
    assert {p.problem for p in kept} == {g[0].problem for g in mixed} and all(
        p in sum(groups, []) for p in kept
    )
    assert len({tuple(reward.filter_pairs(mixed[:1], random.Random(s))) for s in range(40)}) > 1, (
        "drawn at random"
    )
    cache = PairCache(20)
    cache.add(kept[:12])
    drawn = cache.draw(5, rng)
    assert (
        len(set(drawn)) == 5 and len(cache) == 7 and set(drawn) | set(cache.pairs) == set(kept[:12])
    )
    assert (
        set(cache.draw(100, rng)) == set(kept[:12]) - set(drawn)
        and len(cache) == 0
        and cache.draw(3, rng) == []
    )
    cache.add([Pair(problems[0], str(i), True) for i in range(25)])
    assert len(cache) == 20 and cache.dropped == 5 and cache.pairs[0].response == "5", (
        "the oldest leave first"
    )


def test_advantages_by_hand():
    close(reward.advantages([1, 0, 0, 1], [0] * 4), [1, -1, -1, 1], 1e-5)
    close(
        reward.advantages([1, 0, 0, 0], [0] * 4), torch.tensor([3, -1, -1, -1]) / math.sqrt(3), 1e-5
    )
    close(reward.advantages([1, 0, 0, 0], [0] * 4, std=False), [0.75, -0.25, -0.25, -0.25])
    close(reward.advantages([1, 5, 0, 7], ["a", "b", "a", "b"], std=False), [0.5, -1, -0.5, 1])
    assert reward.advantages([0.7] * 7 + [1.1], [0] * 7 + [1]).tolist() == [0.0] * 8, (
        "no spread: exact zeros"
    )
    assert reward.advantages([], []).shape == (0,)
    fails(lambda: reward.advantages([1, 2], [0]), "2", "1 groups")


def test_constants_cancel_in_a_prompt_group_and_act_elsewhere():
    """The open point of the paper: divided by the std, one pair's critiques have the same advantages under eqs. 2 and 5."""
    calls, right = [True, False, True, True, True, False, False, True], [True] * 4 + [False] * 4
    eq2 = [reward.critique_reward(c, r) for c, r in zip(calls, right)]
    eq5 = [reward.critique_reward(c, r, 0.6, 0.8) for c, r in zip(calls, right)]
    prompt, batch = [0] * 4 + [1] * 4, [0] * 8
    close(reward.advantages(eq2, prompt), reward.advantages(eq5, prompt), 1e-4)
    assert (reward.advantages(eq2, batch) - reward.advantages(eq5, batch)).abs().max() > 0.1
    assert (
        reward.advantages(eq2, prompt, std=False) - reward.advantages(eq5, prompt, std=False)
    ).abs().max() > 0.01


def test_toy_problems():
    rng = random.Random(0)
    for _ in range(300):
        problem = reward.toy_problem(rng)
        expression = problem.question.split()[1]
        steps = reward.toy_steps(expression)
        assert (
            str(eval(expression) % 10) == problem.answer == str(steps[-1][3])
        )  # the generator's own text, by Python's rules
        assert reward.is_correct(train.toy_solution(steps), problem.answer)
        check = train.toy_critique(steps, steps)
        assert critique.judgement(check) is True and check.count("ok") == 3
    train_set = {p.question for p in reward.toy_problems(3000, 0)}
    held_out = {p.question for p in reward.toy_problems(512, 12345, held_out=True)}
    assert len(train_set) == 3000 and len(held_out) == 512 and not train_set & held_out
    for _ in range(500):
        messages, text = train.toy_demonstration(rng)
        assert not any(q in messages[0]["content"] for q in held_out)
        assert "Conclusion" not in text or critique.judgement(text) is not None


def test_data_files():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"

        def problems(text):
            path.write_text(text)
            return reward.load_problems(path)

        good = '{"question": "1+1?", "answer": "so #### 2"}\n\n{"question": "2+2?", "answer": 4}\n'
        assert [(p.question, p.answer) for p in problems(good)] == [
            ("1+1?", "so #### 2"),
            ("2+2?", "4"),
        ]
        fails(lambda: problems(""), "data.jsonl", "empty")
        fails(lambda: problems(good + "{oops}\n"), "data.jsonl:4", "not JSON")
        fails(lambda: problems(good + '{"question": "x"}\n'), "data.jsonl:4", "answer")
        fails(lambda: problems('{"answer": "x"}\n'), "data.jsonl:1", "question")
        fails(lambda: problems('{"question": " ", "answer": "x"}\n'), "data.jsonl:1", "question")
        fails(lambda: problems('{"question": "x", "answer": null}\n'), "data.jsonl:1", "answer")
        fails(lambda: problems("[1]\n"), "data.jsonl:1", "object")
        fails(
            lambda: problems('{"question": "a\\ud800", "answer": "x"}\n'),
            "data.jsonl:1",
            "surrogates",
        )
        fails(
            lambda: reward.load_problems(Path(folder) / "none.jsonl"), "none.jsonl", "No such file"
        )
        fails(lambda: reward.load_problems(folder), folder)
        path.write_bytes(b"\xff\xfe\x00")
        fails(lambda: reward.load_problems(path), "data.jsonl")


# ------------------------------------------------------------------------------------------------ loss and update


def test_grpo_loss_by_hand():
    old, mask = torch.zeros(2, 2), torch.tensor([[1, 1], [1, 0]])
    new = torch.tensor(
        [[1.5, 0.9], [0.7, float("nan")]]
    ).log()  # ratios; what is masked may hold anything
    advantage = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    # min(1.5, 1.2) = 1.2;  min(0.9, 0.9) = 0.9;  min(0.7 * -2, 0.8 * -2) = -1.6;  mean over three tokens
    close(train.grpo_loss(new, old, advantage, mask), -(1.2 + 0.9 - 1.6) / 3)
    close(train.grpo_loss(new, old, advantage, mask, clip=0.6), -(1.5 + 0.9 - 1.4) / 3)
    ref = torch.tensor(
        [[1.5, 1.8], [1.4, 9.0]]
    ).log()  # ref/new = 1, 2, 2: k3 = 0, 1 - log 2, 1 - log 2
    k3 = 2 * (1 - math.log(2)) / 3
    close(
        train.grpo_loss(new, old, advantage, mask, ref_logprobs=ref, kl=0.5),
        -(1.2 + 0.9 - 1.6) / 3 + 0.5 * k3,
    )
    close(
        train.grpo_loss(
            new, old, advantage, mask, ref_logprobs=ref, kl=torch.tensor([[0.5], [0.0]])
        ),
        -(1.2 + 0.9 - 1.6) / 3 + 0.5 * k3 / 2,
    )
    assert train.grpo_loss(new, old, advantage, torch.zeros(2, 2)) == 0


def test_grpo_gradient_in_closed_form():
    old, ref = torch.randn(3, 4), torch.randn(3, 4)
    advantage = torch.tensor([[1.0], [-0.5], [2.0]]).expand(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    new = old.clone().requires_grad_()  # on policy: d/dlogp = -A / N
    train.grpo_loss(new, old, advantage, mask).backward()
    close(new.grad, -advantage * mask / 7)
    new = (old + torch.tensor([[0.5, -0.5, 0.1, -0.1]] * 3)).requires_grad_()
    train.grpo_loss(new, old, advantage, mask, clip=0.2, ref_logprobs=ref, kl=0.3).backward()
    ratio, up = (new - old).exp().detach(), advantage > 0
    active = torch.where(
        up, ratio < 1.2, ratio > 0.8
    )  # beyond the clip the policy term has no gradient
    expected = -advantage * ratio * active + 0.3 * (1 - (ref - new).exp().detach())
    close(new.grad, expected * mask / 7)


def episodes_of(run, n=6, count=4):
    """Episodes of a real rollout of the toy with made-up advantages, some of them 0."""
    done = train.respond(run, reward.toy_problems(count, 5), n, 1)
    for i, e in enumerate(done):
        e.advantage = [1.0, -0.5, 0.0, 2.0][i % 4]
    return done


def gradient_of(run, episodes):
    """The gradient of GRPO's loss over all episodes at once, by one plain pass: the independent path for `update`."""
    run.model.zero_grad()
    new = rollout.logprobs(run.model, [e.sample for e in episodes])
    loss = -sum(
        (e.advantage * (row - torch.tensor(e.sample.logprobs)).exp()).sum()
        for e, row in zip(episodes, new)
    )
    (loss / sum(len(e.sample.tokens) for e in episodes)).backward()
    gradient = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    run.model.zero_grad()
    return gradient


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients and moves nothing."""

    def step(self, closure=None):
        self.seen = getattr(self, "seen", []) + [
            torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]])
        ]


def test_update_has_the_gradient_of_the_loss():
    """Micro-batches, skipped episodes and mini-batches add up to the gradient of the loss; the sampler agrees with the learner."""
    run = recipe_run("--mini-batch", 1000, "--grad-clip", 1e9)
    episodes, recorder = episodes_of(run), Recorder(run.model.parameters(), lr=1.0)
    expected, limit = gradient_of(run, episodes), rollout.MICRO_TOKENS
    rollout.MICRO_TOKENS = 200  # several micro-batches
    try:
        metrics = train.update(run.model, None, recorder, episodes, run.args, random.Random(0))
        assert len(list(rollout.micro_batches(run.model, [e.sample for e in episodes]))) > 3
    finally:
        rollout.MICRO_TOKENS = limit
    close(recorder.seen[0], expected, 1e-5)
    assert (
        metrics["ratio/max_log"] < 1e-3
        and metrics["ratio/clipped"] == 0
        and not any("kl" in name for name in metrics)
    )
    close(metrics["grad_norm"], expected.norm(), 1e-4)
    run.args.mini_batch, recorder.seen = 12, []
    train.update(run.model, None, recorder, episodes, run.args, random.Random(0))
    order = random.Random(0).sample(episodes, len(episodes))
    for seen, part in zip(recorder.seen, (order[::2], order[1::2])):
        close(seen, gradient_of(run, part), 1e-5)
    assert len(recorder.seen) == 2


def test_kl_to_the_reference():
    """At the reference k3 and its gradient vanish; away from it the weight of each episode counts."""
    run = recipe_run("--mini-batch", 1000, "--grad-clip", 1e9)
    episodes, recorder = episodes_of(run), Recorder(run.model.parameters(), lr=1.0)
    for e in episodes:
        e.advantage, e.kl = 0.0, 1.0
    metrics = train.update(run.model, run.model, recorder, episodes, run.args, random.Random(0))
    assert metrics["kl/response"] < 1e-9 and recorder.seen[0].abs().max() < 1e-5
    other = copy.deepcopy(run.model)
    for p in other.parameters():
        p.data += 0.02 * torch.randn_like(p)
    for weight in (1.0, 2.0):
        for e in episodes:
            e.kl = weight
        episodes[0].role = "attempt 1"
        metrics = train.update(run.model, other, recorder, episodes, run.args, random.Random(0))
        samples = [e.sample for e in episodes]
        away = [b - a for a, b in zip(*[rollout.logprobs(m, samples) for m in (run.model, other)])]
        k3 = [d.exp() - d - 1 for d in away]
        close(
            [metrics["kl/attempt 1"], metrics["kl/response"]],
            [k3[0].mean().item(), torch.cat(k3[1:]).mean().item()],
            1e-4,
        )
    close(recorder.seen[2], 2 * recorder.seen[1], 1e-4)


def test_non_finite_gradient_stops_the_run():
    model = copy.deepcopy(toy()[0])
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    try:
        train.optimizer_step(model, [optimizer], 1.0)
        raise AssertionError("a gradient of nan must stop the run")
    except FloatingPointError as error:
        assert "nan" in str(error) and "\n" not in str(error)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())), (
        "the weights are as they were"
    )


def test_supervised_gradient():
    model, tokenizer = toy()
    samples = [
        rollout.demonstration(tokenizer, critique.solve("Compute 1+2 modulo 10."), "1+2=3"),
        rollout.demonstration(tokenizer, critique.solve("x"), "y"),
    ]
    assert (
        samples[0].tokens[-1] == tokenizer.eos_token_id
        and tokenizer.decode(samples[0].tokens[:-1]) == "1+2=3"
    )
    loss = train.supervised_gradient(model, samples)
    scored = rollout.logprobs(model, samples)
    close(loss, -torch.cat(scored).mean().item(), 1e-5)
    model.zero_grad()


# ------------------------------------------------------------------------------------------------------- recipes


def test_tables_by_hand():
    table = train.judge_table(
        [True, True, False, None, False, True], [True, False, False, True, True, True]
    )
    assert table == {
        "accuracy": 3 / 6,
        "p1": 2 / 4,
        "p2": 1 / 2,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "unreadable": 1 / 6,
    }
    assert (
        train.judge_table([None], [False])["precision"] is None
        and train.judge_table([None], [False])["p1"] is None
    )
    table = train.attempts_table(
        [1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0],
        [True, False, False, False, False],
        [True, False, False, False, True],
    )
    close(
        [table[k] for k in ("t1", "t2", "delta", "i_to_c", "c_to_i", "unchanged", "kept")],
        [0.4, 0.6, 0.2, 0.4, 0.2, 0.2, 1 / 3],
    )
    assert train.attempts_table([1], [0], [False], [False])["kept"] is None


def test_cut_completions_count_as_wrong():
    problem = Problem("1+1?", "2")
    assert train.ends_right(Sample([1], [1], [0.0], True), "2", problem) == 1
    assert train.ends_right(Sample([1], [1], [0.0], False), "2", problem) == 0


def test_group_keys():
    problem, keys = Problem("q", "1"), {}
    for group in ("prompt", "question", "batch"):
        args = train.parse_args(["--group", group])
        keys[group] = [
            train.group_key(args, "response", problem),
            train.group_key(args, "critique", problem, "a"),
            train.group_key(args, "critique", problem, "b"),
            train.group_key(args, "response", Problem("r", "1")),
        ]
    assert [len(set(keys[g])) for g in ("prompt", "question", "batch")] == [4, 2, 1]


def test_gcrl_recipes():
    problems = reward.toy_problems(8, 1)
    flags = ("--n", 4, "--questions", 8, "--pairs", 6)
    episodes, metrics = train.gcrl(recipe_run("--method", "g-rl", *flags), 1, problems)
    assert (
        {e.role for e in episodes} == {"response"}
        and len(episodes) == 32
        and metrics["response/accuracy"] == sum(e.reward for e in episodes) / 32
    )
    run = recipe_run("--method", "gc-rl", "--kl", 0.5, *flags)
    episodes, metrics = train.gcrl(run, 1, problems)
    critiques = [e for e in episodes if e.role == "critique"]
    assert (
        len(episodes) - len(critiques) == 32
        and len(critiques) == 4 * metrics["critique/pairs"]
        and all(e.kl == 0.5 for e in episodes)
    )
    assert metrics["critique/pairs"] + len(run.cache) == 2 * sum(
        0 < sum(e.reward for e in episodes[i : i + 4]) < 4 for i in range(0, 32, 4)
    )
    assert {e.reward for e in critiques} <= {0.0, 0.7}
    run = recipe_run("--method", "c-rl", *flags)
    run.static = [
        Pair(p, text, text == p.answer) for p in problems[:4] for text in (p.answer, "-1")
    ]
    episodes, metrics = train.gcrl(run, 1, problems)
    assert (
        {e.role for e in episodes} == {"critique"}
        and len(episodes) == 24
        and len(run.cache) == 2
        and "response/accuracy" not in metrics
    )
    episodes, _ = train.gcrl(
        recipe_run("--method", "c-rl", "--critique-data", "dynamic", *flags), 1, problems
    )
    assert {e.role for e in episodes} == {"critique"}


def test_rewards_of_critiques_by_flag():
    """--reward-right/-wrong, --balance reweight and --denoise reach the episodes."""
    problems = reward.toy_problems(4, 2)
    pairs = [
        Pair(p, train.toy_solution(reward.toy_steps(p.question.split()[1])), True, 0.2)
        for p in problems
    ]
    pairs += [Pair(p, "\\boxed{x}", False, 0.2) for p in problems]
    for flags, values in [
        (("--reward-right", 0.6, "--reward-wrong", 0.8), {0.0, 0.6, 0.8}),
        (("--balance", "reweight"), {0.0, 0.35 / 0.2, 0.35 / 0.8}),
        (("--denoise", 2), {0.0, 0.05, 0.1, 0.35, 0.7, 0.75, 0.8, 1.05, 1.4}),
    ]:
        episodes, metrics = train.criticise(recipe_run("--n", 6, *flags), pairs, 3)
        assert all(min(abs(e.reward - v) for v in values) < 1e-9 for e in episodes), {
            e.reward for e in episodes
        }
        assert len({e.reward for e in episodes}) > 1 and ("refined/accuracy" in metrics) == (
            "--denoise" in flags
        )


def constructed_attempts(run):
    """Replace sampling by outcomes (r1, r2) = (0,0), (0,1), (1,0), (1,1) for one question; real tokens, so that it can be learned."""
    problem = reward.toy_problems(1, 4)[0]
    done = train.complete(run, [critique.solve(problem.question)], 8, 1)

    def two_attempts(run_, problems, n, seed, **options):
        make = lambda i, role, r: train.Episode(
            *done[i], role, problem, float(r), (role, problem.question)
        )
        return (
            [make(i, "attempt 1", r) for i, r in enumerate((0, 0, 1, 1))],
            [make(4 + i, "attempt 2", r) for i, r in enumerate((0, 1, 0, 1))],
            {"t1": 0.5, "t2": 0.5, "delta": 0.0},
        )

    return problem, two_attempts


def test_score_stages_by_hand():
    real = train.two_attempts
    flags = (
        "--method",
        "score",
        "--n",
        4,
        "--alpha",
        10,
        "--beta1",
        0.01,
        "--beta2",
        0.1,
        "--stage1-steps",
        1,
        "--steps",
        2,
        "--mini-batch",
        100,
        "--grad-clip",
        1e9,
    )
    run = recipe_run(*flags)
    problem, train.two_attempts = constructed_attempts(run)
    try:
        one, m1 = train.score(run, 1, [problem])
        two, m2 = train.score(run, 2, [problem])
        plain, _ = train.score(recipe_run("--method", "multi-turn", "--n", 4), 1, [problem])
    finally:
        train.two_attempts = real
    assert m1["stage"] == 1 and m2["stage"] == 2
    close([e.reward for e in one], [0, 0, 0, 0, 0, 1, 0, 1])  # Stage I: the second attempt only
    close([e.kl for e in one], [0.11] * 4 + [0.01] * 4)
    close(
        [e.reward for e in two], [0, 0, 1, 1, 0, 11, -10, 1]
    )  # Stage II: r(y2) + 10 (r(y2) - r(y1))
    close([e.kl for e in two], [0.01] * 8)
    close([e.reward for e in plain], [0, 0, 1, 1, 0, 1, 0, 1])  # multi-turn: the plain rewards
    assert run.args.no_std, "divided by the standard deviation, every alpha would act alike"
    a = lambda episodes: reward.advantages(
        [e.reward for e in episodes], [e.group for e in episodes], std=False
    ).tolist()
    close(a(one), [0] * 4 + [-0.5, 0.5, -0.5, 0.5])
    close(
        a(two), [-0.5, -0.5, 0.5, 0.5, -0.5, 10.5, -10.5, 0.5]
    )  # each attempt has its own group and baseline
    # Stage I: without KL the update's gradient is that of the second attempts alone, with the first ones in the token mean
    for e in one:
        e.kl = 0.0
    run.reference = None
    run.optimizer = Recorder(run.model.parameters(), lr=1.0)
    train.learn(run, one, 1)
    share = sum(len(e.sample.tokens) for e in one[4:]) / sum(len(e.sample.tokens) for e in one)
    close(run.optimizer.seen[0], share * gradient_of(run, one[4:]), 1e-5)


def test_two_attempts_is_the_real_conversation():
    run = recipe_run("--method", "score", "--n", 2)
    problems = reward.toy_problems(3, 7)
    first, second, table = train.two_attempts(run, problems, 2, 5)
    assert (
        [e.problem for e in first]
        == [e.problem for e in second]
        == [p for p in problems for _ in range(2)]
    )
    for a, b in zip(first, second):
        conversation = critique.correct(a.problem.question, a.text)
        assert b.sample.prompt == rollout.encode_chat(run.tokenizer, conversation)
        assert a.text in run.tokenizer.decode(b.sample.prompt)
    assert table["unchanged"] == sum(a.text == b.text for a, b in zip(first, second)) / 6
    wrong = [(a, b) for a, b in zip(first, second) if not a.reward]
    close(
        table["kept"],
        sum(reward.final_answer(a.text) == reward.final_answer(b.text) for a, b in wrong)
        / len(wrong),
    )
    assert len({e.group for e in first}) == len({e.group for e in second}) == 3 and not {
        e.group for e in first
    } & {e.group for e in second}


def test_supervised_recipes_keep_what_they_should():
    run = recipe_run("--method", "star", "--n", 8)
    kept, metrics = train.star(run, 1, reward.toy_problems(6, 8))
    assert kept and all(e.reward == 1 and reward.is_correct(e.text, e.problem.answer) for e in kept)
    assert (
        metrics["traces"]
        == sum(e.role == "attempt 2" for e in kept)
        >= sum(e.role == "attempt 1" for e in kept)
    )
    real, train.complete = (
        train.complete,
        lambda run, chats, n, seed, **options: [
            (Sample([1], [1], [0.0], True), "no answer") for _ in chats
        ],
    )
    try:
        assert train.two_attempts(run, reward.toy_problems(1, 8), 1, 0)[2]["kept"] == 0, (
            "none is given"
        )
    finally:
        train.complete = real
    kept, metrics = train.star(
        recipe_run("--method", "star", "--max-new-tokens", 4), 1, reward.toy_problems(2, 8)
    )
    assert not kept and metrics["truncated"] == 1 and metrics["kept"] == 0, (
        "what was cut has no answer to be given again"
    )
    problems = reward.toy_problems(4, 9)
    run = recipe_run("--method", "pair-sft")
    run.static = [Pair(p, text, text == p.answer) for p in problems for text in (p.answer, "x")]
    kept, _ = train.pair_sft(run, 1, problems)
    assert len(kept) == 4 and all(e.text == e.problem.answer for e in kept)
    assert kept[0].sample.prompt == rollout.encode_chat(
        run.tokenizer, critique.correct(kept[0].problem.question, "x")
    )


# ------------------------------------------------------------------------------------------------------- whole runs

SMALL = (
    "--questions",
    10,
    "--n",
    10,
    "--mini-batch",
    64,
    "--eval-size",
    16,
    "--eval-every",
    100,
    "--warmup",
    1,
    "--lr",
    4e-4,
)


def test_reward_rises_in_every_method():
    """Ten problems again and again: what each method trains must get better on them."""
    for method, keys, steps in [
        ("g-rl", ["response/accuracy"], 8),
        ("c-rl", ["critique/accuracy"], 9),
        ("gc-rl", ["response/accuracy", "response/accuracy + critique/accuracy"], 9),
        ("score", ["t2"], 8),
        ("multi-turn", ["t1", "t2"], 8),
        ("star", ["t1"], 8),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            rows, printed = trained(
                folder + "/run",
                "--method",
                method,
                "--data",
                toy_file(12),
                "--steps",
                steps,
                "--static-questions",
                10,
                *SMALL,
            )
            for key in keys:

                def score(
                    row,
                ):  # gc-rl's pairs change with its responses: what must rise is what it earns from both
                    return sum(row[name] for name in key.split(" + "))

                before, after = sum(map(score, rows[1:3])) / 2, sum(map(score, rows[-2:])) / 2
                assert after > before + 0.05, (
                    f"{method}: {key} went from {before:.2f} to {after:.2f}"
                )
            for row in rows[1:]:
                assert method == "star" or row["ratio/max_log"] < 1e-3, (
                    f"{method} step {row['step']}: {row['ratio/max_log']}"
                )
            if method == "score":
                assert [row["stage"] for row in rows[1:]] == [1] * 7 + [2], "five sixths of 8 steps"
            assert (
                "start" in printed
                and "end" in printed
                and [row["step"] for row in rows] == list(range(steps + 1))
            )
            for name in "generation critique critique_precision critique_recall t1 t2 delta i_to_c c_to_i size unchanged kept".split():
                assert "eval/" + name in rows[0] and "eval/" + name in rows[-1], name
            assert (
                AutoModelForCausalLM.from_pretrained(folder + "/run").num_parameters()
                == toy()[0].num_parameters()
            )


def test_pair_sft_learns_to_correct():
    """Supervised pairs: the loss on the same traces falls."""
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = trained(
            folder + "/run",
            "--method",
            "pair-sft",
            "--data",
            toy_file(14),
            "--steps",
            8,
            "--static-questions",
            12,
            *SMALL,
        )
    assert rows[-1]["loss"] < rows[1]["loss"] - 0.02, [row.get("loss") for row in rows]


def test_resume_gives_the_same_run():
    for method, keys, *options in [
        (
            "gc-rl",
            "response/accuracy critique/accuracy cache/size kl/critique",
            "--kl",
            0.01,
            "--pairs",
            4,
        ),
        ("score", "stage t1 t2", "--stage1-steps", 2),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            flags = (
                "--method",
                method,
                "--data",
                toy_file(40),
                "--questions",
                6,
                "--n",
                4,
                "--eval-size",
                4,
                "--mini-batch",
                20,
                "--eval-every",
                100,
                *options,
            )
            whole, _ = trained(folder + "/a", *flags, "--steps", 4)
            trained(folder + "/b", *flags, "--steps", 2)
            with open(folder + "/b/metrics.jsonl", "a") as file:
                file.write('{"step": 3, "left over": "from a step behind the checkpoint"}\n')
            parts, _ = trained(folder + "/b", *flags, "--steps", 4, "--resume")
            assert [row["step"] for row in parts] == [0, 1, 2, 3, 4]
            for key in [*keys.split(), "grad_norm", "entropy"]:
                close(
                    *[
                        [-1 if row.get(key) is None else row[key] for row in rows[1:]]
                        for rows in (parts, whole)
                    ],
                    1e-4,
                )
            assert whole[4]["kl/response" if method == "gc-rl" else "kl/attempt 1"] > 0
            fails(
                lambda: trained(folder + "/b", *flags, "--steps", 4, "--resume"), "done its 4 steps"
            )
            fails(
                lambda: trained(folder + "/b", *flags, "--steps", 9, "--seed", 5, "--resume"),
                "--seed",
                "0",
                "5",
            )


def test_an_outgrown_context_loses_no_step():
    def outgrown(run, step, problems):
        if step == 3:
            raise InputError("prompt 7 has 600 tokens")
        return real(run, step, problems)

    real, train.METHODS["star"] = train.METHODS["star"], outgrown
    try:
        with tempfile.TemporaryDirectory() as folder:
            fails(
                lambda: trained(
                    folder + "/run",
                    "--method",
                    "star",
                    "--steps",
                    4,
                    "--questions",
                    2,
                    "--n",
                    2,
                    "--eval-size",
                    4,
                ),
                "prompt 7",
            )
            assert torch.load(folder + "/run/resume.pt", weights_only=True)["step"] == 2
    finally:
        train.METHODS["star"] = real


def test_same_exam_for_every_method():
    with tempfile.TemporaryDirectory() as folder:
        for method in ("g-rl", "c-rl"):
            trained(
                f"{folder}/{method}",
                "--method",
                method,
                "--steps",
                0,
                "--eval-size",
                32,
                "--static-questions",
                8,
            )
        exams = [
            sample.load_exam(f"{folder}/{method}/eval_pairs.jsonl") for method in ("g-rl", "c-rl")
        ]
        first = [
            json.loads(open(f"{folder}/{method}/metrics.jsonl").readline())
            for method in ("g-rl", "c-rl")
        ]
    assert (
        exams[0] == exams[1]
        and len(exams[0]) >= 16
        and sum(p.right for p in exams[0]) == len(exams[0]) / 2
    )
    assert [p.right for p in exams[0]] == [
        train.ends_right(Sample([], [], [], True), p.response, p.problem) == 1 for p in exams[0]
    ]
    assert first[0]["eval/critique"] == first[1]["eval/critique"] and first[0]["eval/pairs"] == len(
        exams[0]
    )


def test_cold_start():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demonstrations.jsonl"

        def load(*rows):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return train.load_demonstrations(path)

        q, r = {"question": "q", "response": "r"}, {"critique": "no\nConclusion: wrong"}
        assert load(q) == [(critique.solve("q"), "r")]
        assert load(q | r) == [(critique.critique("q", "r"), "no\nConclusion: wrong")], (
            "a wrong response is no demonstration of solving"
        )
        assert (
            len(
                load(
                    q | {"critique": "Conclusion: right", "label": "right"},
                    q | r | {"label": False},
                )
            )
            == 3
        )
        fails(lambda: load(q, q | r | {"label": "right"}), "jsonl:2", "contradicts")
        fails(lambda: load(q | {"critique": "hm"}), "jsonl:1", "Conclusion")
        fails(lambda: load(q | {"label": "maybe"}), "jsonl:1", "label")
        fails(lambda: load({"question": "q"}), "jsonl:1", "response")
        fails(lambda: load(q | {"label": "wrong"}), "nothing to learn")
        rows = []
        for p in reward.toy_problems(24, 1):
            steps = reward.toy_steps(p.question.split()[1])
            rows.append(
                {
                    "question": p.question,
                    "response": train.toy_solution(steps),
                    "critique": train.toy_critique(steps, steps),
                }
            )
        load(*rows)
        rows, printed = trained(
            folder + "/run",
            "--cold-start",
            path,
            "--cold-start-steps",
            10,
            "--cold-start-lr",
            3e-4,
            "--mini-batch",
            48,
            "--steps",
            0,
            "--eval-size",
            16,
        )
        losses = [
            float(line.split("loss ")[1].split()[0])
            for line in printed.splitlines()
            if line.startswith("cold start")
        ]
        assert losses[-1] < losses[0], losses
        changed = AutoModelForCausalLM.from_pretrained(folder + "/run")
        assert any(
            not torch.equal(a, b) for a, b in zip(changed.parameters(), toy()[0].parameters())
        )


def test_demonstrations_from_worked_solutions():
    assert (
        train.calculate("2+3*4-6/4", {}) == Fraction(25, 2)
        and train.calculate("2+3", {Fraction(3): Fraction(10)}) == 12
    )
    assert (
        train.calculate("(2+3)*4", {})
        is train.calculate("2**9", {})
        is train.calculate("1/0", {})
        is train.calculate("", {})
        is None
    )
    work = "In May she sold 48/2 = $<<48/2=24>>24.\nThat makes 48+24 = <<48+24=72>>72 and 72*.5 = <<72*.5=36>>36.\n#### 36"
    seen = set()
    for seed in range(40):
        good, broken = train.gsm8k_demonstrations(Problem("48 clips?", work), random.Random(seed))
        assert (
            "<<" not in good["response"] + broken["response"]
            and good["label"]
            and not broken["label"]
        )
        assert reward.is_correct(good["response"], work) and not reward.is_correct(
            broken["response"], work
        )
        assert [critique.judgement(row["critique"]) for row in (good, broken)] == [True, False]
        assert (
            good["critique"] == "48/2 = 24: ok\n48+24 = 72: ok\n72*.5 = 36: ok\nConclusion: right"
        )
        seen.add(broken["response"])
    assert (
        "In May she sold 48/2 = $26.\nThat makes 48+26 = 74 and 74*.5 = 37.\nThe answer is \\boxed{37}."
        in seen
    )
    assert train.gsm8k_demonstrations(Problem("q", "no annotation #### 3"), random.Random(0)) == []
    assert (
        train.gsm8k_demonstrations(
            Problem("q", "5-20 = <<5-20=-15>>-15\n#### -15"), random.Random(0)
        )
        == []
    )
    with tempfile.TemporaryDirectory() as folder:
        data, file = Path(folder) / "data.jsonl", Path(folder) / "demonstrations.jsonl"
        data.write_text(
            "".join(
                json.dumps({"question": f"{i} clips?", "answer": work}) + "\n" for i in range(20)
            )
        )
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(["--data", str(data), "--make-demonstrations", str(file)])
        assert len(train.load_demonstrations(file)) == 18 * 3, (
            "two of twenty are held out; a right response, two critiques each"
        )
        fails(
            lambda: train.main(["--data", str(data), "--make-demonstrations", str(file)]),
            "exists already",
        )


def test_mini_batches():
    for count, size, expected in [
        (520, 256, [260, 260]),
        (10, 4, [5, 5]),
        (7, 100, [7]),
        (9, 3, [3, 3, 3]),
        (1, 5, [1]),
    ]:
        batches = train.mini_batches(list(range(count)), size, random.Random(0))
        assert [len(b) for b in batches] == expected and sorted(sum(batches, [])) == list(
            range(count)
        )


def test_bad_input_is_one_line_and_touches_nothing():
    with tempfile.TemporaryDirectory() as folder:
        out, empty, bad = (
            Path(folder) / "out",
            Path(folder) / "empty.jsonl",
            Path(folder) / "bad.jsonl",
        )
        empty.touch()
        bad.write_text('{"question": "x", "answer": "1"}\n{"question": "x"}\n')
        run = lambda *flags: (
            lambda: train.main(["--out", str(out), "--device", "cpu", *map(str, flags)])
        )
        fails(run("--method", "grpo"), "--method", "grpo")
        fails(run("--model", folder + "/nothing"), "cannot load model", "nothing")
        fails(run("--data", folder + "/nothing.jsonl"), "nothing.jsonl")
        fails(run("--data", empty), "empty.jsonl", "empty")
        fails(run("--data", bad), "bad.jsonl:2", "answer")
        fails(run("--cold-start", bad), "bad.jsonl:1", "response")
        fails(run("--n", 1), "--n 1", "standard deviation")
        fails(run("--steps", -1), "--steps -1")
        fails(run("--lr", 0), "--lr")
        fails(run("--temperature", 0), "--temperature")
        fails(run("--max-new-tokens", 500), "context", "500")
        fails(run("--method", "score", "--steps", 3, "--stage1-steps", 5), "--stage1-steps 5")
        fails(run("--method", "multi-turn", "--alpha", 5), "multi-turn", "--method score")
        fails(run("--method", "score", "--kl", 0.1), "--kl 0.1", "--beta1")
        fails(run("--resume"), "--resume", "no run")
        fails(run("--device", "nonsense"), "nonsense")
        fails(run("--steps", "many"), "--steps", "many")
        fails(run("--kl", "nan"), "--kl")
        fails(run("--pairs", 0), "--pairs 0")
        fails(run("--eval-size", 50000), "50000")
        fails(run("--make-demonstrations", folder + "/none/x.jsonl"), "none", "folder")
        assert not out.exists(), "nothing may be written before the input is known to be good"
        out.mkdir()
        (out / "metrics.jsonl").write_text("another run\n")
        fails(run("--steps", 1), "out", "--resume")
        assert [p.name for p in out.iterdir()] == ["metrics.jsonl"] and (
            out / "metrics.jsonl"
        ).read_text() == "another run\n"
        use = lambda *flags: lambda: sample.main(["--device", "cpu", *map(str, flags)])
        fails(use(), "--help")
        fails(use("--model", folder + "/nothing", "1+1?"), "cannot load model")
        fails(use("--eval", "--data", bad), "bad.jsonl:2")
        fails(use("x" * 5000), "context")
        fails(use("--compare", folder + "/nothing"), "metrics.jsonl")


def test_gsm8k_comes_from_the_cache_or_fails_clearly():
    hub, url = torch.hub.get_dir, train.GSM8K
    with tempfile.TemporaryDirectory() as folder:
        torch.hub.get_dir, train.GSM8K = (lambda: folder), "http://127.0.0.1:9/{}.jsonl"
        try:
            fails(
                lambda: train.main(["--data", "gsm8k", "--out", folder + "/out"]),
                "--data gsm8k",
                "cannot download",
            )
            assert not list(Path(folder).rglob("*.jsonl"))
            for split in ("train", "test"):
                (Path(folder) / "gsm8k" / f"{split}.jsonl").write_text(
                    json.dumps({"question": split, "answer": "<<1+1=2>>\n#### 2"}) + "\n"
                )
            problems, held_out = train.load_data(train.parse_args(["--data", "gsm8k"]))
            assert [p.question for p in problems + held_out] == [
                "train",
                "test",
            ] and reward.is_correct("2", held_out[0].answer)
        finally:
            torch.hub.get_dir, train.GSM8K = hub, url


# -------------------------------------------------------------------------------------------------------- sample.py


def printed_by(*flags):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        sample.main(["--device", "cpu", *map(str, flags)])
    return printed.getvalue()


def test_majority_vote():
    box = lambda x: f"so \\boxed{{{x}}}"
    assert sample.majority_vote([box(1), box("2/4"), box(0.5), box(3)]) == 1, (
        "1/2 and 0.5 are one answer; the first of its voters stands for it"
    )
    assert sample.majority_vote([box(1), box(2), box(2), box(1)]) == 0, (
        "a tie goes to the answer that came first"
    )
    assert sample.majority_vote(["hm", "", box(4)]) == 2
    assert sample.majority_vote(["hm", ""]) is None and sample.majority_vote([]) is None
    assert sample.majority_vote([box(1), box(1), box(2)], [0.2, 0.3, 0.6]) == 2
    assert sample.majority_vote([box(1), box(2), box(2)], [0.0, 0.0, 0.0]) == 1, (
        "no critique calls any right: a plain vote"
    )
    assert sample.majority_vote([box("x+1"), box("x + 1"), box("y")]) == 0
    assert sample.majority_vote(["", box(1), box(2), box(2)], [1, 0, 0, 0]) == 2, (
        "what cannot be read has no vote to weigh"
    )
    assert reward.answer_key(box("\\frac{1}{2}")) == Fraction(1, 2)


def test_votes_at_equal_budgets():
    box, problem = r"\boxed{{{}}}".format, Problem("1+1?", "2")
    answers = [
        box(3),
        box(2),
        box(3),
        box(2),
    ]  # sampled in this order; the corrections are right, then wrong
    corrections = {0: box(2), 1: box(3)}
    calls = {box(3): "Conclusion: wrong", box(2): "Conclusion: right"}
    stub = Sample([1], [1], [0.0], True)

    def complete(run, chats, n, seed, show):
        assert len(chats) == 2 and n == 1, "half of the budget of 4 is answers"
        if show == "corrections":
            return [(stub, corrections[i]) for i in range(2)]
        return [(stub, calls[answers[i]]) for i in range(2)]

    before = sample.complete, sample.respond, sample.two_attempts
    sample.complete, sample.two_attempts = (
        complete,
        lambda *args, **options: ([], [], {"t1": 0.0, "t2": 0.0}),
    )
    sample.respond = lambda run, problems, n, seed, show: [
        train.Episode(stub, text, "response", problem, 0.0, ()) for text in answers[:n]
    ]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            args = train.parse_args([])
            table = sample.vote(
                train.Run(args, None, None, None), [problem], [2, 4], 1, folder + "/v.svg"
            )
    finally:
        sample.complete, sample.respond, sample.two_attempts = before
    assert table["vote/parallel"] == {2: 0, 4: 0}, "3 and 2 tie and 3 came first"
    assert table["vote/parallel, corrected"] == {2: 1, 4: 1}, (
        "one correction: 2; both tie, and 2 came first"
    )
    assert table["vote/critique-weighted"] == {2: 0, 4: 1}, (
        "an answer called wrong wins only where it is alone"
    )


def test_sample_answers_evaluates_compares_and_votes():
    with tempfile.TemporaryDirectory() as folder:
        text = printed_by("Compute 9-7*2-5 modulo 10.", "--n", 3)
        assert [text.count(word) for word in ("ANSWER", "CRITIQUE", "CORRECTED")] == [
            1,
            3,
            2,
        ] and "boxed" in text
        rows, _ = trained(
            folder + "/run", "--steps", 1, "--questions", 4, "--n", 4, "--eval-size", 32
        )
        last = printed_by(
            "--model",
            folder + "/run",
            "--eval",
            "--json",
            "--size",
            32,
            "--pairs",
            folder + "/run/eval_pairs.jsonl",
        ).splitlines()[-1]
        numbers = json.loads(last)
        assert numbers["eval/size"] == 32 and numbers["eval/pairs"] == rows[-1]["eval/pairs"]
        for name in ("eval/generation", "eval/critique", "eval/t2", "eval/unchanged"):
            close(numbers[name], rows[-1][name], 0.04)
        text = printed_by("--data", toy_file(14), "--eval", "--json")
        assert json.loads(text.splitlines()[-1])["eval/size"] == 14
        with open(folder + "/run/metrics.jsonl", "a") as file:
            file.write('{"step": 2, "cut in the mid')
        assert "runs, at their last" in printed_by(
            "--compare", folder + "/run", folder + "/run", "--picture", folder + "/c.svg"
        )
        long = Path(folder) / "long.jsonl"
        long.write_text(json.dumps({"question": "9+" * 220 + "9", "answer": "9"}))
        fails(lambda: sample.main(["--vote", "--data", str(long)]), "context", "9+9+9")
        fails(
            lambda: sample.main(["--vote", "--n", "4", "--critiques", "4"]),
            "--critiques 4",
            "budget, 4",
        )
        text = printed_by(
            "--vote",
            "--size",
            8,
            "--n",
            4,
            "--critiques",
            3,
            "--picture",
            folder + "/v.svg",
            "--json",
        )
        assert set(json.loads(text.splitlines()[-1])["vote/critique-weighted"]) == {"4"}, (
            "one answer and three critiques"
        )
        text = printed_by(
            "--vote", "--size", 24, "--n", 4, "--picture", folder + "/v.svg", "--json"
        )
        votes = json.loads(text.splitlines()[-1])
        assert all(0 <= votes.pop("greedy/" + attempt) <= 1 for attempt in ("t1", "t2"))
        assert set(votes) == {"vote/parallel", "vote/parallel, corrected", "vote/critique-weighted"}
        assert all(set(v) == {"2", "4"} for v in votes.values())
        for picture in ("c.svg", "v.svg"):
            assert xml.etree.ElementTree.parse(Path(folder) / picture).getroot().tag.endswith("svg")


# ------------------------------------------------------------------------------------------------------------ main


def main(names):
    tests = [
        (name, test)
        for name, test in globals().items()
        if name.startswith("test_") and callable(test)
    ]
    passed = failed = 0
    for name, test in tests:
        if names and not any(part in name for part in names):
            continue
        start = time.time()
        try:
            test()
            passed += 1
            print(f"ok    {name} ({time.time() - start:.1f} s)", flush=True)
        except (Exception, SystemExit):
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
