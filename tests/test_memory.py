"""Tests of details/memory.py: batches that fit, the forecast of a run."""

import os
import re
import subprocess
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import rollout
import train
from details import data, fast, memory
from details.fast import LearningLayer
from rollout import Sample, generate
from tests.helpers import (
    KINDS,
    ON_TOY,
    TOY,
    fails,
    gradient_of,
    model_of,
    patch,
    ragged,
    saved,
    small_device,
)
from tests.test_fast import is_packed

PEAK = """
import re, sys, train
train.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def test_a_run_says_what_memory_it_needs(tmp_path):
    """Within a quarter of the peak of a model of 8M parameters, measured where Linux tells it.
    What cannot fit is refused."""
    larger = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3}
    config = AutoConfig.from_pretrained(TOY, **larger)
    torch.manual_seed(0)
    saved(tmp_path, AutoModelForCausalLM.from_config(config))
    flags = f"""{ON_TOY} --model {tmp_path} --data {TOY}/train.jsonl --out {tmp_path}/out --steps 2
    --method g-rl --questions 8 --updates 1 --kl 0.01 --eval-size 2 --max-new-tokens 48"""
    with patch(os, "sysconf", return_value=1 << 14):
        fails("would need|smaller", train.main, flags.split())
    if sys.platform == "linux":
        command = [sys.executable, "-c", PEAK, *flags.split()]
        printed = subprocess.run(command, cwd=TOY.parent, stdout=subprocess.PIPE, text=True).stdout
        needed = float(re.search(r"needs ([\d.]+)", printed)[1]) * 1e9
        peak = int(printed.split()[-1]) * 1024
        assert 0.75 < needed / peak < 1.25, (needed, peak)


def tokens_drawn():
    """The tokens of 32 rows."""
    model = model_of("Mistral")
    samples = generate(model, ragged(), n=4, max_new_tokens=20, stop=(2, 5), seed=9)
    return [s.tokens for s in samples]


def test_batches_that_fit_the_memory_give_the_same_tokens():
    """Rows are sampled in as many batches as memory asks for, which the bar counts; where the
    device runs out, they are halved until they fit."""
    whole = tokens_drawn()
    with patch(memory, "rows_that_fit", return_value=7), patch(rollout, "tqdm") as bar:
        assert tokens_drawn() == whole
    sizes = [call.args[0] for call in bar.return_value.update.call_args_list]
    assert sizes == [7, 7, 7, 7, 4]
    with small_device(rollout, "prefill", 5) as tried:
        assert tokens_drawn() == whole
    rows = [len(call.args[1]) for call in tried.call_args_list]
    assert rows[:4] == [32, 16, 8, 4]


def test_a_device_too_small_for_one_row_is_an_error():
    """The device's own error, a CPU's is a RuntimeError, ends the program in one line, and no
    weight stays packed."""
    model = model_of("Mistral")
    of_a_cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
    for error in (torch.OutOfMemoryError("MPS backend out of memory"), of_a_cpu):
        with patch(fast, "LARGE", 0), patch(rollout, "prefill", side_effect=error):
            fails(f"error: out of memory: {error}", data.run_command, tokens_drawn)
        assert not is_packed(model)


def test_micro_batches_by_hand():
    """Every sample is in one micro-batch, none of which is too large, in few of them. What a token
    needs is what goes into and comes out of 7 matrices a layer, in fp32: q, o 32 + 32, k, v 32 +
    16, and 32 + 48 three times."""
    token = 3 * (2 * 64 + 2 * 48 + 3 * 80) * 4
    sizes = [(9, 3), (2, 8), (4, 4), (2, 1)] * 5
    samples = [Sample([1] * prompt, [1] * completion, [], True) for prompt, completion in sizes]
    # Tokens that the memory holds, parts that it is divided into, how many micro-batches at most.
    for room, parts, count in [(40, 1, 4), (80, 2, 4), (10**6, 1, 1), (5, 1, 17)]:
        with patch(memory, "memory", return_value=room * token):
            batches = memory.micro_batches(model_of("Llama"), samples, parts)
        assert sorted(sum(batches, [])) == list(range(20))
        assert len(batches) <= count
        for indices in batches:
            prompts, completions = zip(*[sizes[index] for index in indices])
            computed = max(prompts) * len(set(prompts)) + max(completions) * len(indices)
            assert computed <= room // parts or len(indices) == 1


def test_blocks_computed_again_give_the_same_gradient():
    """On a device too small for one completion every block is computed again, to the same bits."""
    samples = [Sample([1, 5], [7, 8], [], True), Sample([1, 5], [9], [], True)]
    for kind in KINDS:
        model = model_of(kind)
        blocks = []
        gradients = []
        standing = memory.standing_bytes(model) + 4 * model.num_parameters()  # with a reference
        for there in (1 << 40, standing + 16 * memory.LOGITS + memory.PROGRAM):
            with patch(memory, "memory_of", return_value=there):
                scored = torch.cat(rollout.batch_logprobs(model, samples, 1.0))
            with patch(
                LearningLayer, "update", autospec=True, side_effect=LearningLayer.update
            ) as again:
                gradients.append(gradient_of(scored.square().sum(), model))
            blocks.append(again.call_count)
        assert torch.equal(*gradients), kind
        assert blocks == [0, 2 * model.config.num_hidden_layers], kind


def test_memory_of_a_container(tmp_path):
    """The limit of its cgroup counts, if it has one below the machine's memory."""
    cpu = torch.device("cpu")
    (tmp_path / "memory.max").write_text("max\n")
    with patch(memory, "CGROUP", tmp_path):
        machine = memory.memory_of(cpu)
        (tmp_path / "memory.max").write_text("1000000\n")
        assert memory.memory_of(cpu) == 1000000 < machine
