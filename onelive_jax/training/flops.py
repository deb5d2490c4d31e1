"""Floating-point operations of the model from its equations, for model FLOPs utilisation.

Two operations a multiply-add, matrix products alone: look-ups, norms, exponentials and the optimizer are not counted,
nor is what rematerialisation computes again. A training step costs three forward passes: the gradient of a product is
two products. With D width, F feed-forward width, T history items, d head width, G groups, S positions:

    block, a position:   2 · [2 D² + 2 D² + gate · 2 D² + 2 D G d + 3 D F + 2 T D + 2 S D]
                              cross and self q, out; gates; self k, v; SwiGLU; logits and mix of cross and of self
    main decoder:        N blocks x L positions;  module k: (L − k) x (one block + merge 2 · 2 D²)
    heads, copying:      2 · positions · (D K + 32 D);  identity: 2 · (D E + E A), or 2 · (D E + E (S + 1)) where only
                         S authors are drawn (and E for each of some hundred rooms on air, not counted)
    context, an item:    2 · (habits D (F_habits + D) + time D² + author E D + L_kv S_kv D G d + copy keys 2 · 32 D)

Products that only look something up (a one-hot times a table) are left out: a faster implementation would not have
them. tests/onelive_jax/training/test_flops.py compares the sum with what XLA counts on an unscanned model.

MFU = examples/s · FLOPs an example / (devices · peak FLOP/s of one).
"""

from onelive_jax.batch import HABIT_FEATURES
from onelive_jax.config import ModelConfig
from onelive_jax.model.identity import COPY_DIM

# Dense bfloat16 peak, FLOP/s of one device, by what `jax.Device.device_kind` contains (lower case), from the vendors'
# data sheets. The longer name comes first.
PEAK_BF16: dict[str, float] = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "v6e": 918e12, "v6 lite": 918e12,
                               "v5p": 459e12, "v5 lite": 197e12, "v5e": 197e12, "v4": 275e12}


def forward_flops(config: ModelConfig, *, history: int, levels: int, codes: int, authors: int,
                  author_dim: int) -> dict[str, int]:
    """FLOPs of one example's teacher-forced forward pass, by part.

    Args: history, T of all sequences together; levels, L; codes, K; authors, A; author_dim, E.
    """
    c, D, T, L = config, config.dim, history, levels
    kv = c.num_groups * (D // c.num_heads)
    block = 4 * D * D + (2 * D * D if c.gate else 0) + 2 * D * kv + 3 * D * c.mlp_dim  # weights a position meets

    def blocks(count: int, positions: int) -> int:
        # A single position attends to itself with weight one: no logits, no mix.
        attended = 2 * positions * D if positions > 1 else 0
        return count * positions * (block + 2 * T * D + attended)

    modules = range(1, L) if c.mtp else range(0)
    states = sum(L - k for k in (0, *modules))
    parts = {
        "decoder": blocks(c.num_layers, L),
        "modules": sum(blocks(1, L - k) + (L - k) * 2 * D * D for k in modules),
        "heads": states * D * codes,
        "context": T * (c.habits * (len(HABIT_FEATURES) * D + D * D) + c.item_time * D * D
                        + c.author_items * author_dim * D + c.context_sets * c.context_split * D * kv),
    }
    if c.copy:
        heads = 1 + c.identity  # the codes' copy scores, and the authors'
        parts["copy"] = (states + c.identity) * D * COPY_DIM + heads * T * D * COPY_DIM + states * T * COPY_DIM
    if c.identity:
        drawn = c.author_negatives
        parts["identity"] = D * author_dim + author_dim * (drawn + 1 if 0 < drawn < authors else authors)
    return {name: 2 * products for name, products in parts.items()}


def training_flops(config: ModelConfig, **sizes: int) -> int:
    """FLOPs of one example's training step: three forward passes. Arguments as in `forward_flops`."""
    return 3 * sum(forward_flops(config, **sizes).values())


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 peak of a device, FLOP/s, by `jax.Device.device_kind`; None where it is not in the table (a CPU)."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_kind.lower()), None)


def utilisation(examples_per_second: float, flops_per_example: int, devices: int, device_kind: str) -> float | None:
    """Model FLOPs utilisation 0 … 1, or None where the device's peak is not known."""
    peak = peak_flops(device_kind)
    return None if peak is None else examples_per_second * flops_per_example / (devices * peak)
