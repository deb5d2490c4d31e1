"""Where activations lie on a mesh: what the compiler, left alone, would choose badly.

Parameters are split over fsdp and tensor by `partitioning.RULES`, the batch over data and fsdp. Left to itself the
compiler lets the embeddings' split of the width D spread into the decoder and gathers a whole batch of gradients for
every table. Two decisions keep it from that: the rows of activations stay where the batch's rows are, and tables are
read where their rows lie.

Axes: R rows of a table, C its columns, B batch.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from onelive_jax.sharding.partitioning import RULES, mesh_axes_of

Array = jax.Array
BATCH_AXES: tuple[str, ...] = dict(RULES)["batch"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays between parameters lie. The default leaves it to the compiler, which is right on one device;
    `make_placement` makes that of a mesh.

    Attributes:
      rows: activations [B, …] → the same, their rows split as those of the batch are.
      take: (table [R, C], its logical axes, indices [B, …]) → table[indices], [B, …, C].
    """

    rows: Callable[[Array], Array] = lambda x: x
    take: Callable[[Array, tuple, Array], Array] = lambda table, axes, index: table[index]


def on_mesh(model: Any, mesh: Mesh) -> Any:
    """The model (an `OneLive`) with its activations placed on `mesh`; parameters and values are the same.

    An array whose rows cannot be split evenly (a single request) is left to the compiler.
    """
    return model.clone(placement=make_placement(mesh))


def make_placement(mesh: Mesh) -> Placement:
    """The `Placement` of a mesh; of one device, the default."""
    if mesh.size == 1:
        return Placement()
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def rows(x: Array) -> Array:
        if x.shape[0] % parts:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))

    def take(table_RxC: Array, axes: tuple[str | None, ...], index: Array) -> Array:
        if index.shape[0] % parts:
            return table_RxC[index]
        return _take_where_rows_lie(table_RxC, axes, index, mesh)

    return Placement(rows, take)


def _take_where_rows_lie(table_RxC: Array, axes: tuple[str | None, ...], index: Array, mesh: Mesh) -> Array:
    """table[index], [B, …, C]: each device looks up what lies in its own rows, and the results are added up.

    No device ever holds more rows than its own, in the gradient neither: that of a sum over devices is a broadcast,
    and each adds what concerns its rows. Columns split over fsdp are gathered, as those of every parameter are.
    """
    spec = mesh_axes_of(axes, table_RxC.shape, mesh, "a table")
    row_axes, column_axes = (() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
                             for entry in spec)
    shared = tuple(axis for axis in row_axes if axis in BATCH_AXES)  # these split the batch too
    others = tuple(axis for axis in row_axes if axis not in BATCH_AXES)

    def local(table: Array, index: Array) -> Array:
        for axis in column_axes:
            table = jax.lax.all_gather(table, axis, axis=1, tiled=True)
        for axis in reversed(shared):
            index = jax.lax.all_gather(index, axis, axis=0, tiled=True)
        if row_axes:
            here = index - jax.lax.axis_index(row_axes) * table.shape[0]
            mine = (here >= 0) & (here < table.shape[0])
            out = jnp.where(mine[..., None], table[jnp.where(mine, here, 0)], 0.0)
        else:
            out = table[index]
        for axis in shared:
            out = jax.lax.psum_scatter(out, axis, scatter_dimension=0, tiled=True)
        return jax.lax.psum(out, others) if others else out

    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, rows), out_specs=rows)(table_RxC, index)
