"""The state of a training run, its optimizer, and how both are made on a mesh. Everything here is pure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh

from onelive_jax.config import TrainingConfig
from onelive_jax.sharding import partitioning

Array = jax.Array
Extend = Callable[["TrainState"], "TrainState"]

# Parameters that are never decayed whatever their rank, by words in their own name. Decay would pull a row of a table
# towards zero at every step in which its author, code or hour was not seen; a norm's scale has no reason to be small.
NOT_DECAYED = ("table", "embed", "norm", "scale", "bias")
# Tables that are called by what they hold.
TABLES = ("hour", "day", "week", "sequence")


@struct.dataclass
class TrainState:
    """All that a step reads and writes. A phase that carries more has a subclass with further fields.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: tree of float32 arrays (without partitioning boxes).
      opt_state: state of `make_optimizer`.
      key: typed random key []; step s uses `jax.random.fold_in(key, s)`, so a resumed run draws what an
        uninterrupted one would.
    """

    step: Array
    params: Any
    opt_state: optax.OptState
    key: Array


def learning_rate(config: TrainingConfig) -> optax.Schedule:
    """Step → rate: linear from 0 over warmup_steps, then a cosine down to final_rate x learning_rate at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.learning_rate * config.final_rate,
    )


def decayed(params: Any) -> Any:
    """Tree of bool: True where weight decay applies, i.e. to matrices that are no tables, norms or biases.

    A parameter is decayed if it has two axes or more, and its own name (the last of its path, lower case) neither
    contains a word of `NOT_DECAYED` nor is one of `TABLES`. The names of the modules around it do not matter.
    """
    def is_decayed(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True).lower()
        return jnp.ndim(leaf) >= 2 and name not in TABLES and not any(word in name for word in NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip, with `learning_rate(config)` and decay on `decayed` parameters only."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate(config), b1=0.9, b2=config.b2, weight_decay=config.weight_decay, mask=decayed),
    )


def _build(init_params: Callable[[Array], Any], tx: optax.GradientTransformation, extend: Extend | None,
           key: Array) -> TrainState:
    init_key, run_key = jax.random.split(key)
    params = meta.unbox(init_params(init_key))
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), key=run_key)
    return state if extend is None else extend(state)


def fields_of(state: TrainState) -> dict[str, Any]:
    """The fields by name, to make a subclass of: `PolicyState(**fields_of(state), reference=…)`."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def abstract_state(init_params: Callable[[Array], Any], tx: optax.GradientTransformation, mesh: Mesh,
                   extend: Extend | None = None) -> TrainState:
    """Shapes, dtypes and shardings of a run's state; allocates nothing.

    Args:
      init_params: random key → parameters, boxed by `nn.with_logical_partitioning` or plain (then replicated);
        e.g. `lambda key: model.init(key, batch)["params"]`.
      tx: the optimizer.
      mesh: the mesh of the run.
      extend: adds the fields of a subclass. Those that have the parameters' tree lie as the parameters do, all others
        whole on every device.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct` with shardings: the target of a restore. `shardings(...)` of it pins
      the in and out shardings of a step.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(init_params, key)
    shapes = jax.eval_shape(lambda k: _build(init_params, tx, extend, k), key)
    params = partitioning.logical_to_sharding(boxed, mesh)
    like_params = jax.tree.structure(shapes.params)

    def place(value):
        same = jax.tree.structure(value) == like_params
        return params if same else jax.tree.map(lambda _: partitioning.replicated(mesh), value)

    placed = shapes.replace(**{name: place(value) for name, value in fields_of(shapes).items()} | {
        "opt_state": partitioning.optimizer_sharding(tx, shapes.params, params, mesh)})
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, placed)


def shardings(abstract: Any) -> Any:
    """The shardings of `abstract_state`, as a tree of the same form."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(init_params: Callable[[Array], Any], tx: optax.GradientTransformation, mesh: Mesh,
               key: Array, extend: Extend | None = None) -> TrainState:
    """A fresh state, made in place on the mesh: no device ever holds more than its part.

    The values depend on `key` alone; another mesh changes them by no more than rounding. Arguments as in
    `abstract_state`; `key` is a typed key.
    """
    placed = shardings(abstract_state(init_params, tx, mesh, extend))
    return jax.jit(lambda k: _build(init_params, tx, extend, k), out_shardings=placed)(key)


def with_author_table(state: TrainState, table_AxE: np.ndarray) -> TrainState:
    """The state with the author table float32 [A, E], which every process holds whole, in place of a random one.

    (In `init_params` it would be a constant of the program: whole on every device.)

    Raises: ValueError where the shapes differ.
    """
    table = state.params["author_table"]
    if np.shape(table_AxE) != table.shape:
        raise ValueError(f"the tokenizer's embedding is {np.shape(table_AxE)}, the model's author table {table.shape}: "
                         "both must come from one run")
    placed = partitioning.put_whole(np.asarray(table_AxE, table.dtype), table.sharding)
    return state.replace(params={**state.params, "author_table": placed})
