"""Low-rank adapters (LoRA, arXiv 2106.09685): a model is trained through a few small matrices.

Each linear layer of the blocks computes W x + 2 B A x in place of W x. With rank R, A [R, inputs]
begins at random and B [outputs, R] at zero, so the model begins as it was. Only A and B are
trained; W gets no gradient and no optimizer state, and stands in memory in the compute dtype.

All linear layers have adapters, their scale alpha / R is 2, and the learning rate is ten times that
of full training, as "LoRA Without Regret" (Thinking Machines, 2025) found to learn as much.
"""

import json
import math
import os

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from torch.nn.functional import linear
from transformers.modeling_utils import safe_save_file

from details.errors import InputError

SCALE = 2


def add_adapters(model, rank, seed):
    """Freeze the model and give it adapters. Raises InputError for a model whose blocks have other
    matrices than linear layers: GPT-2's, or experts that are fused."""
    layers = []
    for name, module in model.base_model.named_modules():
        if type(module) is torch.nn.Linear:
            layers.append(module)
            continue
        matrices = [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]
        if matrices and not isinstance(module, torch.nn.Embedding):
            raise InputError(f"--lora: {name} is a {type(module).__name__}, no nn.Linear")
    model.requires_grad_(False)
    model.lora_rank = rank
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        outputs, inputs = layer.weight.shape
        start = 2 * torch.rand(rank, inputs, generator=generator) - 1
        layer.lora_A = torch.nn.Parameter(start / math.sqrt(inputs))
        layer.lora_B = torch.nn.Parameter(torch.zeros(outputs, rank))
        layer.weight.data = layer.weight.data.to(model.compute_dtype)
        layer.register_forward_hook(add_product)


def add_product(layer, inputs, output):
    """W x + 2 B A x, of inputs x [..., inputs]; `output` is W x (and a bias)."""
    return output + SCALE * linear(linear(inputs[0], layer.lora_A), layer.lora_B)


@torch.no_grad()
def merged_weights(model):
    """The weights of a plain model: fp32, on the CPU, the adapters added to their layers. What is
    tied stands under both of its names; from a GPU it is copied twice."""
    plain = {}
    for name, weight in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        if kind.startswith("lora_"):
            continue
        layer = model.get_submodule(path)
        if kind == "weight" and hasattr(layer, "lora_A"):
            weight = weight.float() + SCALE * layer.lora_B @ layer.lora_A
        plain[name] = weight.cpu()
    return plain


def save_adapters(model, folder):
    """Write the adapters as PEFT reads them, aside and renamed."""
    weights = {}
    layers = set()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        layers.add(name.split(".")[-2])  # as q_proj
        weights[f"base_model.model.{name}.weight"] = weight.detach().cpu()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": model.lora_rank,
        "lora_alpha": SCALE * model.lora_rank,
        "target_modules": sorted(layers),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safe_save_file(weights, folder / "partial")
    os.replace(folder / "partial", folder / "adapter_model.safetensors")
