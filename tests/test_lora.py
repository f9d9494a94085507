"""Tests of details/lora.py, of runs with adapters, and of the best model of a run."""

import copy
import importlib.util
import shutil

import torch
from transformers import AutoModelForCausalLM

import sample
import train
from details import fast
from details.lora import add_adapters, merged_weights
from details.policy import trained_weights
from rollout import generate
from tests.helpers import (
    TOY,
    close,
    fails,
    patch,
    problems,
    saved,
    shown_rows,
    tiny,
    trained,
    used,
    write,
)
from tests.test_rollout import agree
from tests.test_runs import SHORT, same_runs

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(kind="Qwen2", moved=True):
    """(a model, the same with adapters); `moved`: these do something."""
    plain = tiny(kind)
    model = copy.deepcopy(plain)
    model.compute_dtype = torch.float32
    add_adapters(model, 4, seed=0)
    if moved:
        for name, weight in trained_weights(model).items():
            if name.endswith("lora_B"):
                weight.data.normal_(std=0.1)
    return plain, model


def test_new_adapters_change_no_bit():
    """B is zero. Only A and B are trained: 2 matrices of each of 7 layers in 3 blocks."""
    plain, model = adapted(moved=False)
    assert torch.equal(plain(IDS).logits, model(IDS).logits)
    assert len(trained_weights(model)) == 2 * 7 * 3


def test_gradients_of_adapters_by_the_chain_rule():
    """Of W' = W + 2 B A with dL/dW' = G: dL/dA = 2 B^T G and dL/dB = 2 G A^T. G comes from a plain
    model whose weights are W'."""
    plain, model = adapted()
    plain.load_state_dict(merged_weights(model))
    for one in (plain, model):
        one(IDS).logits.logsumexp(-1).square().sum().backward()
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            gradient = plain.get_submodule(name).weight.grad
            close(layer.lora_A.grad, 2 * layer.lora_B.T @ gradient, 1e-3)
            close(layer.lora_B.grad, 2 * gradient @ layer.lora_A.T, 1e-3)
            assert layer.weight.grad is None


def test_sampler_and_learner_have_the_same_adapters():
    """Also with packed weights."""
    _, model = adapted()
    with patch(fast, "LARGE", 32):
        samples = generate(model, [[5, 6], [7, 8, 9]], 4, 8, stop=())
    agree(model, samples)


def test_blocks_with_other_matrices_are_refused():
    """GPT-2's layers are no nn.Linear."""
    fails("--lora: h.0.attn.c_attn is a Conv1D", adapted, "GPT2")


ADAPTED = """--eval-every 1 --max-new-tokens 64 --method g-rl --lora 4 --lr 1e-2
--cold-start-lr 1e-2 --cold-start"""


def test_a_run_with_adapters(tmp_path):
    """It ends as a plain model. It goes on exactly, and keeps no copy of its base, which has to be
    the same. Its KL's reference is the model after the cold start."""
    demonstrations = write(tmp_path / "demonstrations.jsonl", shown_rows(problems(8, 7)))
    base = shutil.copytree(TOY, tmp_path / "base")
    for name, steps in (("whole", "5"), ("parts", "2"), ("parts", "5 --resume")):
        text = f"--model {base} --data {TOY}/train.jsonl {SHORT} --steps {steps} {ADAPTED}"
        rows, _ = trained(tmp_path / name, text, demonstrations)
    same_runs(tmp_path / "parts", tmp_path / "whole")
    assert rows[1]["kl/response"] == 0
    assert rows[3]["kl/response"] > 0
    whole = torch.load(tmp_path / "whole" / "resume.pt", weights_only=True)
    assert all("lora" in name for name in whole["weights"])
    assert any(weight.abs().max() > 0 for name, weight in whole["start"].items() if "B" in name)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_input_embeddings().weight.data[0, 0] += 1
    saved(base, model)
    words = f"--model {base} is not the model"
    fails(words, trained, tmp_path / "parts", text, demonstrations)


def test_peft_reads_adapters(tmp_path):
    """On the base they give the merged model."""
    if importlib.util.find_spec("peft") is None:
        print("skipped: PEFT is not installed")
        return
    import peft

    trained(tmp_path / "run", f"{SHORT} --steps 2 --lora 4 --lr 1e-2 --method g-rl")
    base = AutoModelForCausalLM.from_pretrained(TOY)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    close(model(IDS).logits, merged(IDS).logits, 1e-4)


UP = "model.layers.0.mlp.up_proj.weight"


def best_run(out, text, metric):
    """A run of three steps with made-up evaluations: what it printed, its UP after each step."""
    seen = []

    def evaluate(sampler, asked, exam):
        numbers, answers = sample.evaluate(sampler, asked, exam)
        if bool(exam) != ("--select-data" in text):  # whose problems have no exam
            numbers[metric] = [0.1, 0.7, 0.7, 0.5][len(seen)]
            seen.append(merged_weights(sampler.model)[UP].clone())
        return numbers, answers

    with patch(train, "evaluate", evaluate):
        _, printed = trained(out, f"{SHORT} --steps 3 --eval-every 1 --method g-rl {text}")
    return printed, seen


def test_the_best_model_is_kept(tmp_path):
    """Of equal ones the last, on the problems of --select-data if there are any; with adapters it
    is merged when the run ends. sample.py evaluates it as it does a run."""
    select = write(tmp_path / "select.jsonl", problems(3, 9, held_out=True))
    for text, words in (
        ("--method c-rl", "eval/critique 0.700, +0.200 against the end"),
        ("--lora 4 --lr 1e-2", "eval/generation 0.700, +0.200 against the end"),
        (f"--select-data {select}", "eval/generation on --select-data 0.700"),
    ):
        out = tmp_path / f"run{len(text)}"
        printed, seen = best_run(out, text, words.split()[0])
        assert "best, step 2: " + words in printed
        best = AutoModelForCausalLM.from_pretrained(out / "best").state_dict()[UP]
        close(best, seen[2])
        assert not torch.equal(seen[2], seen[3])
        assert '"eval/size": 2' in used(f"--model {out}/best --eval --json")
