"""Floating-point operations of the model, counted on its own program, for model FLOPs utilisation.

Two operations a multiply-add, matrix products alone: the products of the traced program are added up (a product in a
scan as often as the scan runs), and what no result needs is left out. Look-ups, norms, exponentials and the optimizer
are not counted, nor is what rematerialisation computes again: the program is traced without it. The products that the
einsum attention does are counted whatever kernel runs. tests/onelive_jax/training/test_flops.py compares with what XLA
counts.

MFU = examples/s · FLOPs an example / (devices · peak FLOP/s of one).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

from onelive_jax.batch import Batch, Request
from onelive_jax.config import DecodingConfig
from onelive_jax.decoding.live_index import LiveIndex
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive
from onelive_jax.sharding.placement import Placement
from onelive_jax.training.supervised import losses

# Dense bfloat16 peak, FLOP/s of one device, by what `jax.Device.device_kind` contains (lower case), from the vendors'
# data sheets. The first name that fits counts, so the longer comes first. H100 and H200 alone mean SXM.
# A part of a GPU (MIG) has a part of the peak, not known here. jax calls a v5p "TPU v5", a v4i "TPU v4 lite".
PEAK_BF16: dict[str, float | None] = {
    " mig ": None, "h200 nvl": 835e12, "h200": 989e12, "h100 pcie": 756e12, "h100 nvl": 835e12, "h100": 989e12,
    "a100": 312e12, "v6e": 918e12, "v6 lite": 918e12, "v5 lite": 197e12, "v5e": 197e12, "v5p": 459e12,
    "tpu v5": 459e12, "v4 lite": 138e12, "v4i": 138e12, "tpu v4": 275e12}


def count(function: Callable, *args: Any) -> int:
    """FLOPs of the matrix products of function(*args); nothing is compiled or run.

    Args may be `jax.ShapeDtypeStruct`s. Of a conditional the costliest branch counts, and a while loop, the length of
    which no program tells, as if it ran once.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(eqn.outvars[0].aval.shape)
            continue
        values = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        inner = [_count(getattr(x, "jaxpr", x)) for x in values if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def training_flops(model: OneLive, params: Any, example: Batch, rows: int) -> float:
    """FLOPs of one example's training step: those of the gradient of a batch of `rows`, over its rows.

    Args: params, arrays or shapes; example, a batch of any size, of which only shapes are read.
    """
    model = _countable(model)

    def loss(params: Any, batch: Batch) -> jax.Array:
        return losses(*model.apply({"params": params}, batch), batch, model.config)[0]

    return count(jax.grad(loss), params, with_rows(example, rows)) / rows


def decoding_flops(model: OneLive, config: DecodingConfig, params: Any, request: Request, index: LiveIndex,
                   rows: int) -> float:
    """FLOPs of one request's ranking (`decoding.recommend`), of `rows` requests that share the catalogue `index`.

    Arguments as in `training_flops`.
    """
    return count(make_recommender(_countable(model), config), params, with_rows(request, rows), index) / rows


def _countable(model: OneLive) -> OneLive:
    """The model with every product in sight: once, whole (not a device's part), and in no kernel."""
    config = dataclasses.replace(model.config, remat="none", attention="einsum", dropout=0.0)
    return model.clone(config=config, placement=Placement())


def with_rows(tree: Any, rows: int) -> Any:
    """The shapes of arrays [B, …] with `rows` in the place of B."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), tree)


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 peak of a device, FLOP/s, by `jax.Device.device_kind`; None where the table does not say (a CPU)."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_kind.lower()), None)


def utilisation(examples_per_second: float, flops_per_example: float, devices: int, device_kind: str) -> float | None:
    """Model FLOPs utilisation 0 … 1, or None where the device's peak is not known."""
    peak = peak_flops(device_kind)
    return None if peak is None else examples_per_second * flops_per_example / (devices * peak)
