"""The reward model (Pantheon, arXiv 2505.13894): a head per objective, and one personalised score that fuses them.

    user (history, pooled by attention from the candidate room) ┐
    author (embedding, codes; the viewer's habit with them)     ├─ shared layer ─ tower o ─ h_o ─ logit_o  (each o)
    room (viewers, age; codes now), moment (hour, day)          ┘                           │ stop-gradient
                                                        ensemble(h_1 … h_O, user, moment) ─ score in (0, 1)

The ensemble reads hidden states and starts from the heads' weighted sum; it hands no gradient back: objectives are
predicted as well as without it. Its loss is a weighted sum over objectives (`reward_losses`): equal voices or what
each is worth to the platform, times weights that `training/reward.py` moves (IPPO).

The history is encoded once a request, whatever the number of candidates: rollouts are scored the way logs are.

Axes: B batch, C candidate rooms, T history items, L levels, K codes, O objectives, D width, H heads, d head width,
E author width, F habit features, U tower width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from onelive_jax.batch import ACTIONS, OBJECTIVES, Feedback, LiveRooms, Request
from onelive_jax.config import ModelConfig, RewardConfig
from onelive_jax.model.context import ContextProjector
from onelive_jax.model.layers import (
    MLP,
    Context,
    RMSNorm,
    TimeEmbedding,
    attention,
    dropout,
    normal,
    rms_normalise,
    weight,
    zeros,
)
from onelive_jax.sharding.placement import Placement

Array = jax.Array
RATE_LOW, RATE_HIGH = 0.01, 0.99  # base rates are held in here: a single gift must not outweigh a batch of clicks


def check_objectives(objectives: tuple[str, ...]) -> None:
    """Raises ValueError unless `objectives` are some of `OBJECTIVES`, each once and in that order."""
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown or not objectives or list(objectives) != [name for name in OBJECTIVES if name in objectives]:
        raise ValueError(f"objectives={objectives!r} must be some of {', '.join(OBJECTIVES)}, each once, in that order")


def labels(outcomes_BxCxO: Array, objectives: tuple[str, ...], watch_cap: float) -> Array:
    """What each head predicts the expectation of, float32 in 0 … 1: events as they are, minutes watched as
    log(1 + minutes) / log(1 + watch_cap), cut at 1 (log: a tenth minute tells more than a hundredth)."""
    if "watch" not in objectives:
        return outcomes_BxCxO
    at = objectives.index("watch")
    watch = jnp.log1p(jnp.maximum(outcomes_BxCxO[..., at], 0.0)) / jnp.log1p(watch_cap)
    return outcomes_BxCxO.at[..., at].set(jnp.minimum(watch, 1.0))


class RewardModel(nn.Module):
    """(request, rooms) → (objective logits [B, C, O], score logit [B, C]); probabilities are their sigmoids.

    Attributes:
      config: its settings. levels, num_codes: L, K of the semantic ids.
      num_authors, author_dim: A, E of the author table (start it from the tokenizer's embedding).
      objectives: those of the log. sequences: history sequences read.
      placement: where activations lie, see `Placement`.
    """

    config: RewardConfig
    levels: int
    num_codes: int
    num_authors: int
    author_dim: int
    objectives: tuple[str, ...] = ACTIONS
    sequences: tuple[str, ...] = ("live",)
    placement: Placement = Placement()

    def setup(self):
        check_objectives(self.objectives)
        c, D = self.config, self.config.dim
        self.code_table = weight(self, "code_table", (self.levels, self.num_codes, D), (None, "codes", "embed"),
                                 normal(D**-0.5))
        self.author_table = weight(self, "author_table", (self.num_authors, self.author_dim), ("authors", "features"),
                                   normal(self.author_dim**-0.5))
        self.author_bias = weight(self, "author_bias", (self.num_authors, len(self.objectives)), ("authors", None),
                                  zeros)
        self.projector = ContextProjector(ModelConfig(dim=D, num_heads=c.num_heads, num_groups=c.num_heads,
                                                      context_split=2, dropout=c.dropout), self.sequences,
                                          self.placement)
        self.room = RoomEncoder(D)
        self.pool = HistoryPool(c.num_heads)
        self.towers = Towers(c, len(self.objectives))
        self.ensemble = Ensemble(c, self.objectives)

    def encode(self, request: Request, train: bool = False) -> Context:
        """The history as keys and values; once a request."""
        return self.projector(request, self.code_table, self.author_table, train)

    def score(self, context: Context, request: Request, rooms: LiveRooms, train: bool = False) -> tuple[Array, Array]:
        """Candidates of a request that was encoded: (objective logits float32 [B, C, O], score logit float32 [B, C]).

        What it says of slots without a room is not to be read.
        """
        take, rows = self.placement.take, self.placement.rows
        codes = sum(take(self.code_table[level], ("codes", "embed"), rooms.codes[..., level])
                    for level in range(self.levels))
        author_BxCxE = take(self.author_table, ("authors", "features"), rooms.author)
        room_BxCxD, moment_BxD = map(rows, self.room(context, request, rooms, rows(codes), author_BxCxE))
        pooled_BxCxD = rows(self.pool(room_BxCxD, context))
        mask = context.mask[..., None]
        user_BxD = jnp.sum(jnp.where(mask, context.items, 0.0), 1) / jnp.maximum(mask.sum(1), 1)
        user_BxCxD = jnp.broadcast_to((user_BxD + moment_BxD)[:, None], room_BxCxD.shape)
        together = jnp.concatenate([room_BxCxD, pooled_BxCxD, user_BxCxD, room_BxCxD * pooled_BxCxD,
                                    room_BxCxD * user_BxCxD], -1)
        hidden_BxCxOxU, logits_BxCxO = map(rows, self.towers(rows(together), train))
        logits_BxCxO = logits_BxCxO + take(self.author_bias, ("authors", None), rooms.author)
        return logits_BxCxO, self.ensemble(hidden_BxCxOxU, logits_BxCxO, user_BxCxD)

    def __call__(self, request: Request, rooms: LiveRooms, train: bool = False) -> tuple[Array, Array]:
        return self.score(self.encode(request, train), request, rooms, train)


class RoomEncoder(nn.Module):
    """Author, codes, viewers, age, moment and the viewer's own habit with the author → [B, C, D]."""

    dim: int

    @nn.compact
    def __call__(self, context: Context, request: Request, rooms: LiveRooms, codes_BxCxD: Array,
                 author_BxCxE: Array) -> tuple[Array, Array]:
        """Returns: (rooms [B, C, D], moment [B, D])."""
        D = self.dim
        x = codes_BxCxD + author_BxCxE @ weight(self, "author", (author_BxCxE.shape[-1], D), ("features", "embed"))
        x = x + MLP(D, D, name="features")(rooms.features.astype(jnp.float32))
        # The author's newest item of the history says how the viewer knows them. (Items are oldest first.)
        match = (rooms.author[:, :, None] == context.author[:, None]) & context.mask[:, None] & rooms.mask[..., None]
        T = match.shape[-1]
        newest = jnp.max(jnp.where(match, jnp.arange(T, dtype=jnp.int32), -1), -1)
        habits = jnp.take_along_axis(context.habits, jnp.maximum(newest, 0)[..., None], 1)
        known = (newest >= 0).astype(jnp.float32)[..., None]
        # How much of the history looks like this room: the share of items that carry its codes so far.
        alike, shares = context.mask[:, None], []
        for level in range(rooms.codes.shape[-1]):
            alike = alike & (rooms.codes[:, :, None, level] == context.codes[:, None, :, level])
            shares.append(alike.sum(-1) / jnp.maximum(context.mask.sum(-1), 1)[:, None])
        x = x + MLP(D, D, name="habits")(jnp.concatenate([habits * known, known, jnp.stack(shares, -1)], -1))
        moment = TimeEmbedding(D, name="moment")(request.hour, request.day, jnp.zeros_like(request.day), x.dtype)
        return rms_normalise(x + moment[:, None]), moment


class HistoryPool(nn.Module):
    """Attention from each candidate over the history's shared keys and values, [B, C, D]; zeros without history."""

    heads: int

    @nn.compact
    def __call__(self, room_BxCxD: Array, context: Context) -> Array:
        B, C, D = room_BxCxD.shape
        query = weight(self, "query", (D, self.heads, D // self.heads), ("embed", "heads", "head_dim"),
                       nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)))
        out = weight(self, "out", (D, D), ("heads", "embed"))
        q = RMSNorm("head_dim", name="norm")(jnp.einsum("bcd,dhk->bchk", room_BxCxD, query))
        mask = jnp.broadcast_to(context.mask[:, None], (B, C, context.mask.shape[1]))
        return attention(q, context.keys[0], context.values[0], mask).reshape(B, C, D) @ out


class Towers(nn.Module):
    """A shared layer, then a layer and a logit of its own for each objective."""

    config: RewardConfig
    objectives: int

    @nn.compact
    def __call__(self, x_BxCxF: Array, train: bool) -> tuple[Array, Array]:
        """Returns: (hidden [B, C, O, U], logits float32 [B, C, O])."""
        c, O = self.config, self.objectives
        shared_in = weight(self, "shared", (x_BxCxF.shape[-1], c.mlp_dim), ("features", "mlp"))
        shared = nn.silu(x_BxCxF @ shared_in + weight(self, "shared_bias", (c.mlp_dim,), ("mlp",), zeros))
        shared = dropout(self, shared, c.dropout, train)
        tower = weight(self, "tower", (c.mlp_dim, O, c.tower_dim), ("mlp", None, None),
                       nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)))
        hidden = jnp.einsum("bcf,fou->bcou", shared, tower)
        hidden = nn.silu(hidden + weight(self, "tower_bias", (O, c.tower_dim), (None, None), zeros))
        out = weight(self, "out", (c.tower_dim, O), (None, None), normal(0.02))
        logits = jnp.einsum("bcou,uo->bco", hidden, out, preferred_element_type=jnp.float32)
        return hidden, logits + weight(self, "out_bias", (O,), (None,), zeros)


class Ensemble(nn.Module):
    """The heads' hidden states, without gradient, fused for this viewer at this moment: float32 [B, C].

    log Σ_o exp(θ_o) · P(o) − log(1 − read_on · P(no click)) is what the heads say themselves (`reward_losses` has the
    formula); θ starts from the objectives' values and is learned. A network adds what they miss: it reads each
    objective's hidden state and logit, scaled by a gate in (0, 2) that the viewer sets.
    """

    config: RewardConfig
    objectives: tuple[str, ...]

    @nn.compact
    def __call__(self, hidden_BxCxOxU: Array, logits_BxCxO: Array, user_BxCxD: Array) -> Array:
        B, C, O, U = hidden_BxCxOxU.shape
        hidden, logits, user = jax.lax.stop_gradient((hidden_BxCxOxU, logits_BxCxO, user_BxCxD))
        log_voice = weight(self, "log_voice", (O,), (None,), lambda *_: jnp.log(self._values()))
        logits = logits.astype(jnp.float32)
        worth = jax.nn.logsumexp(log_voice + jax.nn.log_sigmoid(logits), -1)
        if "click" in self.objectives:
            no_click = nn.sigmoid(-logits[..., self.objectives.index("click")])
            worth = worth - jnp.log1p(-self.config.read_on * no_click)
        gate = 2.0 * nn.sigmoid(MLP(self.config.tower_dim, O, out_scale=0.02, name="gate")(user))
        fused = (hidden * gate[..., None]).reshape(B, C, O * U)
        fused = jnp.concatenate([fused, logits * gate, user], -1)
        score = MLP(self.config.mlp_dim, 1, out_scale=0.02, name="mlp")(fused)[..., 0]
        return worth + score.astype(jnp.float32) + weight(self, "bias", (), (), zeros)

    def _values(self) -> Array:
        """What an objective is worth to begin with, float32 [O]; one that is worth nothing is all but silent."""
        value = values_of(self.config.objective_values, self.objectives)
        return jnp.asarray(np.maximum(value, 1e-3 * value.max()) if value.any() else np.ones_like(value))


def values_of(values: tuple[float, ...], objectives: tuple[str, ...]) -> np.ndarray:
    """float32 [O] of config.reward.objective_values; an objective beyond their end is worth nothing."""
    given = dict(zip(OBJECTIVES, values, strict=False))
    return np.array([given.get(name, 0.0) for name in objectives], np.float32)


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """−y log σ(x) − (1 − y) log(1 − σ(x)) of labels in 0 … 1, same shape, float32."""
    return jax.nn.softplus(logits) - labels * logits


def objective_voices(rate_O: Array, values: tuple[float, ...], objectives: tuple[str, ...]) -> Array:
    """How loud each objective speaks in the ensemble before IPPO, float32 [O], mean 1.

    Equal where `values` (config.reward.objective_values) are all 0; else value × base rate: its share in what an
    average room is worth.
    """
    value_O = values_of(values, objectives)
    if not value_O.any():
        return jnp.ones(len(objectives))
    worth_O = value_O * jnp.clip(rate_O, RATE_LOW, RATE_HIGH)
    return worth_O / worth_O.mean()


def attention_taken(label_BxCxO: Array, objectives: tuple[str, ...], rate_O: Array, read_on: float) -> Array:
    """What a look at a room takes of the attention that a slate gets, [B, C, 1], about 1 on average.

    A click ends the reading and takes all of it; a room that is passed by takes 1 − read_on. Everything is 1 for
    read_on = 0, and for a log without clicks.
    """
    if "click" not in objectives:
        return jnp.ones_like(label_BxCxO[..., :1])
    at = objectives.index("click")
    mean = 1.0 - read_on * (1.0 - jnp.clip(rate_O[at], RATE_LOW, RATE_HIGH))
    return (1.0 - read_on * (1.0 - label_BxCxO[..., at, None])) / mean


def reward_losses(objective_logits_BxCxO: Array, score_logit_BxC: Array, feedback: Feedback,
                  objectives: tuple[str, ...], rate_O: Array, weight_O: Array,
                  config: RewardConfig) -> tuple[Array, dict[str, Array]]:
    """Loss of all heads and of the ensemble.

    Heads: mean binary cross-entropy of each objective over what is known of it, summed over objectives; its minimum is
    the expectation of the label, so that heads are calibrated.

    Ensemble: Σ_o w_o · ½ E[ y_o / rate_o · (−log σ(s)) + a · (−log(1 − σ(s))) ] / Σ_o w_o, with a the attention that a
    look takes (`attention_taken`) and w_o the objective's voice times its IPPO weight. Its targets y are mostly the
    heads' probabilities (config.ensemble_labels), so that a rare gift does not move it by luck. At its minimum the odds
    of the score are

        σ(s) / (1 − σ(s)) = (Σ_o w_o E[y_o] / rate_o / Σ_o w_o) / E[a],

    1 for an average room. With objective values, the numerator is Σ_o value_o · E[y_o] over its mean: what the room is
    worth. Over E[a] = 1 − read_on · P(no click), which is the index that sorts a list best that is read from the top
    until a click: a likely click on a room of little worth costs the looks at all rooms below it.

    Args:
      rate_O: float32, base rates of the labels. weight_O: float32, the ensemble's IPPO weights.

    Returns: (float32 scalar, metrics): "loss", "loss_ensemble", "loss_NAME" and "rate_NAME" (mean label of the batch).
    An objective of which a batch knows nothing has loss 0 there.
    """
    label = labels(feedback.outcomes, objectives, config.watch_cap)
    counted = (feedback.known & feedback.rooms.mask[..., None]) * feedback.weight[:, None, None]
    total_O = counted.sum((0, 1))
    mean_O = lambda x: (x * counted).sum((0, 1)) / jnp.maximum(total_O, 1e-6)  # noqa: E731
    head_O = mean_O(binary_cross_entropy(objective_logits_BxCxO, label))
    rate = jnp.clip(rate_O, RATE_LOW, RATE_HIGH)
    score = score_logit_BxC[..., None]
    share = config.ensemble_labels
    target = share * label + (1 - share) * jax.lax.stop_gradient(jax.nn.sigmoid(objective_logits_BxCxO))
    taken = attention_taken(target, objectives, rate_O, config.read_on)
    fused = (target * jax.nn.softplus(-score) / rate + taken * jax.nn.softplus(score)) / 2
    present_O = weight_O * objective_voices(rate_O, config.objective_values, objectives) * (total_O > 0)
    ensemble = jnp.sum(present_O * mean_O(fused)) / jnp.maximum(present_O.sum(), 1e-6)
    total = head_O.sum() + config.ensemble_loss * ensemble
    rates = mean_O(label)
    metrics = {"loss": total, "loss_ensemble": ensemble}
    metrics |= {f"loss_{name}": head_O[i] for i, name in enumerate(objectives)}
    metrics |= {f"rate_{name}": rates[i] for i, name in enumerate(objectives)}
    return total, metrics
