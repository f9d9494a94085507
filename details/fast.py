"""What makes sampling and learning fast; a reader may take it on trust.

- Rows that go on from the same prompt share its keys and values (`SharedLayer`, `attend`).
- While a CPU samples, large weights lie in the layout that it multiplies fastest (`packed`).
"""

import functools
import weakref
from contextlib import contextmanager, suppress

from details.cost import timed  # isort: skip (before torch)

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from details.policy import dtype_of

LARGE = 1 << 16  # numbers in a weight; a larger one is packed
MANY = 32  # rows that are sampled, from which on packing can pay


# ---------------------------------------------------------------------- prompts that rows share
#
# Two prompts, A and B; two completions of A are sampled and one of B, so three rows. The keys of A
# and B are held once. `owner` [0, 0, 1] says which prompt each row goes on from. In attention the
# queries of all rows of a prompt are multiplied with its keys in one product, for which the rows
# are laid out in a table with a line for each prompt:
#
#     table = [[0, 1],      rows 0 and 1 go on from A,
#              [2, 0]]      row 2 from B; where a line is not full stands row 0, of no account
#     index = [0, 1, 2]     where rows 0, 1, 2 are found in the table, read line by line


def rows_by_prompt(owner):
    """(table [prompts * widest], index [rows]) for `owner` [rows], which must be sorted."""
    sizes = torch.bincount(owner)
    widest = int(sizes.max())
    rows = torch.arange(len(owner), device=owner.device)
    first_row = sizes.cumsum(0) - sizes  # of each prompt
    index = owner * widest + rows - first_row[owner]
    table = owner.new_zeros(len(sizes) * widest)
    table[index] = rows
    return table, index


def times_prompts(rows, prompts, layer):
    """`rows` [rows, heads, m, a] times their own prompt's matrix of `prompts` [prompts, heads, a,
    b]: one product for all rows of a prompt, whose matrix so is read once."""
    table = rows[layer.table]
    lines = table.unflatten(0, (len(prompts), -1))  # [prompts, widest, heads, m, a]
    product = torch.einsum("pwhma,phab->pwhmb", lines, prompts)
    return product.flatten(0, 1)[layer.index]


class SharedLayer(DynamicLayer):
    """One layer's keys and values behind the prefill, whose layer is `read`: the prompts' [prompts,
    heads, length, head_dim], once for all rows that go on from one, and the rows' own [rows, heads,
    added, head_dim]. Row i goes on from prompt owner[i].

    The library's layer copies everything at every token; this one writes into room that is made
    for all that may come, time first, so that what a token writes lies together.
    """

    def __init__(self, read, owner, max_added):
        super().__init__()
        self.is_initialized = True
        # Rounded as the library's attention rounds them, but kept in fp32: see `attend`.
        self.kind = read.values.dtype
        both = torch.stack([read.keys, read.values])
        self.prompts = both.to(self.kind).float()  # [2, ...]
        _, heads, _, width = read.keys.shape
        self.room = self.prompts.new_empty(2, max_added, len(owner), heads, width)
        self.added = 0
        self.owner = owner
        self.table, self.index = rows_by_prompt(owner)

    def update(self, keys, values, *args, **kwargs):
        both = torch.stack([keys, values]).to(self.kind)
        self.room[:, self.added] = both.squeeze(3)
        self.added += 1
        self.keys, self.values = self.room[:, : self.added].permute(0, 2, 3, 1, 4)
        # `attend` gets the tensors only. A weak reference: no cycle that outlives the rollout.
        self.keys.layer = weakref.proxy(self)
        return self.keys, self.values

    def get_seq_length(self):
        return self.prompts.shape[3] + self.added

    def batch_select_indices(self, rows):
        """Only these rows stay, and the prompts that they go on from."""
        prompts, self.owner = self.owner[rows].unique(return_inverse=True)
        self.prompts = self.prompts[:, prompts]
        self.room = self.room[:, :, rows]
        self.table, self.index = rows_by_prompt(self.owner)


class LearningLayer(DynamicLayer):
    """One layer's keys and values where log-probs are computed: those of the prompts, `given` for
    what comes behind them, and its own. What is given is not changed, so that a block of the model
    can be computed again."""

    def __init__(self, *given):
        super().__init__()
        self.given = given
        if given:
            self.is_initialized = True
            self.keys, self.values = given

    def update(self, keys, values, *args, **kwargs):
        if self.given:
            given_keys, given_values = self.given
            keys = torch.cat([given_keys, keys], 2)
            values = torch.cat([given_values, values], 2)
        self.keys = keys
        self.values = values
        return keys, values


def attend(module, query, keys, values, attention_mask, scaling, **options):
    """Attention of transformers' models: in decoding over the prompt's keys, which its rows share,
    and over the row's own; else the library's. query [rows, query heads, 1, head_dim], keys and
    values [rows, heads, added, head_dim], mask [rows, 1, 1, length]: paddings, windows."""
    layer = getattr(keys, "layer", None)
    if layer is None:
        return sdpa_attention_forward(
            module,
            query,
            keys,
            values,
            attention_mask,
            scaling=scaling,
            **options,
        )
    rows, heads, _, width = keys.shape
    prompt_keys, prompt_values = layer.prompts
    length = prompt_keys.shape[2]
    query = query.reshape(rows, heads, -1, width)  # by the head whose keys they read
    query = scaling * query.to(layer.kind).float()
    with torch.autocast(query.device.type, enabled=False):  # it would round the scores to bf16
        shared = times_prompts(query, prompt_keys.mT, layer)
        scores = torch.cat([shared, query @ keys.mT], -1)
        if attention_mask is not None:
            scores += torch.where(attention_mask, 0.0, -torch.inf)
        # As the fused kernels do it: rounded weights that do not add up to 1 yet.
        scores -= scores.amax(-1, keepdim=True)
        weights = scores.exp_()
        total = weights.sum(-1, keepdim=True)
        weights = weights.to(layer.kind).float()
        shared = times_prompts(weights[..., :length], prompt_values, layer)
        own = weights[..., length:] @ values
        result = (shared + own) / total
    return result.reshape(rows, 1, -1, width), None


transformers.AttentionInterface.register("shared_prompts", attend)
transformers.AttentionMaskInterface.register("shared_prompts", sdpa_mask)


def shares_prompts(model):
    """Do rows share their prompts in sampling? In bf16 on a CPU each has a copy: there the
    library's attention has an exponential of its own, and the learner is to agree with it."""
    if model.device.type == "cpu" and dtype_of(model) == torch.bfloat16:
        return False
    return model.config._attn_implementation == "shared_prompts"


# -------------------------------------------------------------------------------- packed weights


@contextmanager
def packed(model, rows):
    """Inside the block, in which so many rows are sampled, large weights lie in oneDNN's layout.
    There some CPUs need 0.5 to 0.9 of the time for a product of 64 rows, others as much as before.
    For sampling only: gradients and updates do not reach the copies."""
    layers = []
    if rows >= MANY and model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        for layer in model.modules():
            if type(layer) is torch.nn.Linear and layer.weight.numel() > LARGE:
                layers.append(layer)
    try:
        with timed("prefill"), suppress(RuntimeError):  # of a CPU without bf16
            for layer in layers:
                dtype = dtype_of(model)
                if layer is model.get_output_embeddings():
                    dtype = torch.float32  # see `details.policy.to_logits`
                weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype))
                layer.forward = functools.partial(times_packed, weight, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def times_packed(weight, bias, rows):
    """What torch.nn.Linear gives, of a weight that `packed` has laid out."""
    if bias is not None:
        bias = bias.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise(rows.to(weight.dtype), weight, bias, "none", [], "")


def left_pad(rows, device):
    """Rows of ids, right-aligned: ids and mask, both [rows, longest]. The pad id is never looked
    at: a pad token may equal EOS, or be sampled. Mask by length."""
    rows = [torch.tensor(row) for row in rows]
    ids = pad_sequence(rows, batch_first=True, padding_value=-1, padding_side="left").to(device)
    return ids.clamp(min=0), (ids >= 0).long()
