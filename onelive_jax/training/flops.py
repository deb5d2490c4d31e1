"""Floating-point operations of the model from its equations, for model FLOPs utilisation.

Two operations a multiply-add, matrix products alone: look-ups, norms, exponentials and the optimizer are not counted,
nor is what rematerialisation computes again. Products with a one-hot matrix are, since the model does them: the mass of
copied codes, and the picking of hours, days and weeks. With D width, F feed-forward width, T history items, d head
width, G groups, S positions, L levels, K codes, A authors, E author width, C = 32 copy width, F_h habit features, and
P = L (L + 1) / 2 hidden states that predict a code (L of them without multi-token prediction):

    block, a position:   2 · [2 D² + 2 D² + gate · 2 D² + 2 D G d + 3 D F + 2 T D + 2 S D]
                              cross and self q, out; gates; self k, v; SwiGLU; logits and mix of cross and of self
    main decoder:        N blocks x L positions;  module k: (L − k) x (one block + merge 2 · 2 D²)
    heads:               2 · P D K
    copying codes:       2 · [P (D C + T C) + T D C + T F_h C + T C]  queries and their scores; keys; habits
                         2 · P T K                                    the mass of the items of each code (one-hot)
    identity:            2 · (D E + E A), or 2 · (D E + E (S + 1)) where only S authors are drawn; its copy score:
                         2 · [D C + T C + T D C + T F_h C + T C]
    context, an item:    2 · (habits (F_h D + D²) + time (47 D + D²) + author E D + L_kv S_kv D G d)
    request:             2 · (47 D + D²)                              time of [BOS] (47: one-hot hours, days, weeks)

Left out, as less than a hundredth: E and a net of 48 weights for each of some hundred rooms on air, and what is done
once a batch (the first layer of the time embeddings, 47 · 3 D² each).

A training step costs three forward passes, for the gradient of a product is two products; of those with data on one
side (one-hot, habit features) it is one. tests/onelive_jax/training/test_flops.py compares the sums with what XLA
counts on an unscanned model, at a small size and at that of a preset. (`largest_logit`, a diagnosis, is not counted:
where attention is no einsum, it costs 2 · T D a block and position once more.)

MFU = examples/s · FLOPs an example / (devices · peak FLOP/s of one).
"""

from onelive_jax.batch import HABIT_FEATURES
from onelive_jax.config import ModelConfig
from onelive_jax.model.identity import COPY_DIM

CLOCK = 24 + 7 + 16  # hours, days and weeks of a time embedding

# Dense bfloat16 peak, FLOP/s of one device, by what `jax.Device.device_kind` contains (lower case), from the vendors'
# data sheets. The first name that fits counts, so the longer comes first. H100 and H200 alone mean SXM.
# A part of a GPU (MIG) has a part of the peak, not known here. jax calls a v5p "TPU v5", a v4i "TPU v4 lite".
PEAK_BF16: dict[str, float | None] = {
    " mig ": None, "h200 nvl": 835e12, "h200": 989e12, "h100 pcie": 756e12, "h100 nvl": 835e12, "h100": 989e12,
    "a100": 312e12, "v6e": 918e12, "v6 lite": 918e12, "v5 lite": 197e12, "v5e": 197e12, "v5p": 459e12,
    "tpu v5": 459e12, "v4 lite": 138e12, "v4i": 138e12, "tpu v4": 275e12}


def _products(c: ModelConfig, history: int, levels: int, codes: int, authors: int,
              author_dim: int) -> tuple[dict[str, int], int]:
    """(multiply-adds of the forward pass by part, those among them with data on one side)."""
    D, T, L, features = c.dim, history, levels, len(HABIT_FEATURES)
    modules = range(1, L) if c.mtp else range(0)
    states = sum(L - k for k in (0, *modules))
    parts = {
        "decoder": _blocks(c, c.num_layers, L, T),
        "modules": sum(_blocks(c, 1, L - k, T) + (L - k) * 2 * D * D for k in modules),
        "heads": states * D * codes,
        "context": _context(c, T, author_dim),
    }
    data = T * (c.habits * features * D + c.item_time * CLOCK * D)
    if c.request_time:
        parts["request"] = CLOCK * D + D * D
        data += CLOCK * D
    if c.copy:
        parts["copy"] = _copy_keys(c, T) + states * (_copy_scores(c, T) + T * codes)
        data += states * T * codes + (1 + c.identity) * c.habits * T * features * COPY_DIM
    if c.identity:
        drawn = c.author_negatives
        parts["identity"] = D * author_dim + author_dim * (drawn + 1 if 0 < drawn < authors else authors)
        if c.copy:
            parts["identity"] += _copy_keys(c, T) + _copy_scores(c, T)
    return parts, data


def _blocks(c: ModelConfig, count: int, positions: int, history: int, attended: int | None = None) -> int:
    """Multiply-adds of `count` blocks over `positions`, each of which attends to `attended` (all of them when None)."""
    D, attended = c.dim, positions if attended is None else attended
    weights = 4 * D * D + (2 * D * D if c.gate else 0) + 2 * D * _group_width(c) + 3 * D * c.mlp_dim
    # A single position attends to itself with weight one: no logits, no mix.
    return count * positions * (weights + 2 * history * D + (2 * attended * D if attended > 1 else 0))


def _group_width(c: ModelConfig) -> int:
    return c.num_groups * (c.dim // c.num_heads)


def _context(c: ModelConfig, history: int, author_dim: int) -> int:
    D = c.dim
    return history * (c.habits * (len(HABIT_FEATURES) * D + D * D) + c.item_time * (CLOCK * D + D * D)
                      + c.author_items * author_dim * D + c.context_sets * c.context_split * D * _group_width(c))


def _copy_keys(c: ModelConfig, history: int) -> int:
    """Of one copy score, whatever the number of hidden states that ask: keys and habits of the items."""
    return history * COPY_DIM * (c.dim + c.habits * (len(HABIT_FEATURES) + 1))


def _copy_scores(c: ModelConfig, history: int) -> int:
    """Of one hidden state that asks: its query and its score of every item."""
    return (c.dim + history) * COPY_DIM


def forward_flops(config: ModelConfig, *, history: int, levels: int, codes: int, authors: int,
                  author_dim: int) -> dict[str, int]:
    """FLOPs of one example's teacher-forced forward pass, by part.

    Args: history, T of all sequences together; levels, L; codes, K; authors, A; author_dim, E.
    """
    return {name: 2 * products
            for name, products in _products(config, history, levels, codes, authors, author_dim)[0].items()}


def training_flops(config: ModelConfig, *, history: int, levels: int, codes: int, authors: int, author_dim: int) -> int:
    """FLOPs of one example's training step. Arguments as in `forward_flops`."""
    parts, data = _products(config, history, levels, codes, authors, author_dim)
    return 2 * (3 * sum(parts.values()) - data)


def decoding_flops(config: ModelConfig, *, history: int, levels: int, codes: int, author_dim: int, beams: int,
                   rooms: int) -> int:
    """FLOPs of one request's ranking (`decoding.recommend`), the catalogue shared by the batch.

    Context and the main decoder's first position once; then, a level and beam, a module's block (without multi-token
    prediction: all blocks, over their cache). Arguments as in `forward_flops`; rooms, N of the live index.
    """
    c, D, T = config, config.dim, history
    scores = D * codes + (c.copy and _copy_scores(c, T) + T * codes)  # of one hidden state
    products = _context(c, T, author_dim) + _blocks(c, c.num_layers, 1, T) + scores + (c.copy and _copy_keys(c, T))
    products += c.request_time and CLOCK * D + D * D
    for level in range(1, levels):
        blocks = _blocks(c, 1, 1, T) + 2 * D * D if c.mtp else _blocks(c, c.num_layers, 1, T, level + 1)
        products += beams * (blocks + scores)
    if c.identity:
        products += D * author_dim + rooms * author_dim + (c.copy and _copy_keys(c, T) + _copy_scores(c, T))
    return 2 * products


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 peak of a device, FLOP/s, by `jax.Device.device_kind`; None where the table does not say (a CPU)."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_kind.lower()), None)


def utilisation(examples_per_second: float, flops_per_example: int, devices: int, device_kind: str) -> float | None:
    """Model FLOPs utilisation 0 … 1, or None where the device's peak is not known."""
    peak = peak_flops(device_kind)
    return None if peak is None else examples_per_second * flops_per_example / (devices * peak)
