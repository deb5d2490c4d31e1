"""Every setting of the system as typed dataclasses, each with its meaning and its allowed range.

A config file in experiments/configs/ returns a `Config`; any field is overridden by flag
(`--config.model.num_layers=6`). `validate()` names the first field out of range.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from onelive_jax.settings import check_ranges, setting


def group(cls):
    return field(default_factory=cls, metadata={"doc": (cls.__doc__ or "").strip().splitlines()[0]})


@dataclass
class DataConfig:
    """Where the logs are, how they are split, what a request sees."""

    source: str = setting("twitch", "reader of the log", choices=("log", "twitch", "canonical", "simulated", "kuailive",
                                                                   "kuailive_m3", "amazon"))
    path: str = setting("", "file or folder of the log (not used by source=simulated)")
    columns: str = setting("", "source=log: which column is what, where its name does not say it "
                           "(user=uid,author=channel,start=joined_at,watch=secs:s)")
    room_gap_min: float = setting(30.0, "source=log: pause of a streamer after which a room without an id is another "
                                  "one", low=0.0, high=1440.0)
    default_watch_s: float = setting(0.0, "source=log: length of a view of which the log does not say it (0: it is "
                                     "left out)", low=0.0, high=86_400.0)
    bad_rows: str = setting("drop", "rows that cannot be read are left out and counted, or stop the run",
                            choices=("drop", "stop"))
    valid_hours: float = setting(250 / 6, "length of the validation period before the test period", low=0.0)
    test_hours: float = setting(250 / 6, "length of the test period at the end of the log", low=0.0)
    utc_offset_hours: float = setting(0.0, "local time of the platform minus UTC; also of clocks in the log that name "
                                      "no zone", low=-14.0, high=14.0)
    history_items: int = setting(48, "items of a history sequence", low=1, high=4096)
    history_window: int = setting(256, "views before a request that a sequence is built from", low=1, high=65536)
    history_unit: str = setting("authors", "an item is the last view of a distinct author, or every view",
                                choices=("authors", "views"))
    sequences: tuple[str, ...] = setting(("live",), "history sequences, in the order in which the context concatenates "
                                         "them", choices=("live", "gift", "video"))
    related_authors: int = setting(512, "authors of a request who share an audience with its history, the most similar",
                                   low=0, high=65536)
    effective_view_seconds: float = setting(0.0, "live and video views watched for less than this when the request "
                                            "comes are left out of histories", low=0.0)
    long_view_seconds: float = setting(600.0, "a view of at least this is a long view", low=0.0)
    on_air_share: float = setting(0.5, "share of a batch whose room others show on air (the live losses read only "
                                  "those); the rest is drawn from the other views", low=0.01, high=0.99)
    max_targets: int = setting(20_000, "targets of an evaluation; more are sampled, and the report says so", low=1)
    live_slots: int = setting(128, "rooms on air that a training example is contrasted with", low=2, high=65536)


@dataclass
class SimulatorConfig:
    """The simulated platform (source=simulated)."""

    users: int = setting(400, "people", low=2, high=10_000_000)
    authors: int = setting(150, "streamers", low=2, high=10_000_000)
    days: int = setting(14, "length of the log", low=3, high=3650)
    seed: int = setting(0, "the world; independent of the training seed", low=0, high=2**63 - 1)
    play_days: int = setting(2, "days after the log that can be played; their rooms exist", low=0, high=365)
    jump_size: float = setting(0.9, "how far the content of a room jumps, beside its author's topic of size 1", low=0.0,
                               high=100.0)
    segment_seconds: int = setting(30, "time between content segments, a multiple of 30", low=30, high=86_400)
    taste_drift: float = setting(0.0, "how far each person's taste drifts over days, beside a taste of size 1", low=0.0,
                                 high=100.0)
    trends: float = setting(0.0, "what everybody likes for some days, beside each person's taste of size 1", low=0.0,
                            high=100.0)
    new_authors: float = setting(0.0, "share of the authors who begin in each week", low=0.0, high=10.0)
    shared_events: float = setting(0.0, "rooms a day that everybody wants to see", low=0.0, high=1000.0)
    jump_day: float = setting(0.0, "day of the log on which what everybody likes becomes another (0: none)", low=0.0)


@dataclass
class TokenizerConfig:
    """What becomes a semantic id: towers, InfoNCE, residual k-means."""

    levels: int = setting(3, "codes of a semantic id", low=1, high=8)
    codes: int = setting(64, "codes of a level (K)", low=2, high=65536)
    embedding: str = setting("ia", "what is quantized: the author tower's output, or the content alone",
                             choices=("ia", "mllm"))
    follow_content: bool = setting(True, "ids move with the content of a room while it is on air")
    side_features: bool = setting(True, "the towers read what the log tells of authors and users (data_pipelines/"
                                  "features.py), where it tells anything")
    dim: int = setting(64, "width of the item/author embedding", low=2, high=4096)
    hidden: int = setting(128, "hidden width of the towers' MLPs", low=2, high=16384)
    history_items: int = setting(32, "views that the user tower reads", low=1, high=4096)
    steps: int = setting(1500, "InfoNCE steps", low=1)
    batch_size: int = setting(512, "user-author pairs of an InfoNCE batch", low=2, high=2**20)
    learning_rate: float = setting(3e-3, "peak rate of AdamW", low=0.0, high=1.0)
    weight_decay: float = setting(1e-4, "AdamW weight decay", low=0.0, high=1.0)
    temperature: float = setting(0.1, "starting InfoNCE temperature (learned)", low=1e-3, high=10.0)
    negatives: str = setting("any", "of InfoNCE: pairs of any moment, or of one moment (a batch is a run of views that "
                             "follow each other in time)", choices=("any", "same time"))
    gate_limit: float = setting(1.0, "most that an author's own embedding weighs beside its content (lambda)", low=0.0,
                                high=1.0)
    kmeans_iterations: int = setting(25, "Lloyd iterations of a level", low=1, high=10_000)
    kmeans_init: str = setting("k-means++", "start of a level", choices=("k-means++", "sample"))
    kmeans_mode: str = setting("lloyd", "centroids move once a pass, or after every mini-batch",
                               choices=("lloyd", "minibatch"))
    kmeans_batch: int = setting(65536, "points of a mini-batch (kmeans_mode=minibatch)", low=1)
    kmeans_warm_iterations: int = setting(0, "Lloyd iterations on an eighth of the points before those on all", low=0)
    kmeans_balance: float = setting(0.0, "most points of a code in the fit, times N / K, at least 1; 0: no bound. Ids "
                                    "are the nearest codes all the same", low=0.0)
    refresh_iterations: int = setting(2, "passes over newer data when codebooks are refreshed", low=0)
    refresh_step: float = setting(0.5, "share of the way to its mean that a refresh moves a code", low=1e-3, high=1.0)
    refresh_tower_steps: int = setting(0, "InfoNCE steps that the towers take at a refresh, from where they are (0: "
                                       "they stay)", low=0)
    refresh_margin: float = setting(0.04, "a code is kept while it is worse than the nearest by at most this share "
                                    "of squared distance", low=0.0)


@dataclass
class ModelConfig:
    """The time-aware gated decoder with sequential multi-token prediction (paper, section b)."""

    dim: int = setting(64, "model width D", low=2, high=65536)
    num_layers: int = setting(2, "blocks of the main decoder N", low=1, high=256)
    num_heads: int = setting(4, "query heads H_q", low=1, high=512)
    num_groups: int = setting(2, "key/value groups G_kv, a divisor of num_heads", low=1, high=512)
    mlp_dim: int = setting(128, "hidden width of the SwiGLU feed-forward", low=1, high=262144)
    context_sets: int = setting(1, "distinct key/value sets L_kv shared by the blocks", low=1, high=256)
    context_split: int = setting(1, "S_kv: 1, values are the keys; 2, values of their own", low=1, high=2)
    qk_norm: bool = setting(True, "RMS-normalise queries and keys per head (the context's shared keys always are)")
    gate: bool = setting(True, "elementwise sigmoid gate on the attention output")
    item_time: bool = setting(True, "time embedding on every history item")
    request_time: bool = setting(True, "time embedding on [BOS]")
    mtp: bool = setting(True, "sequential multi-token prediction")
    loss_weights: tuple[float, ...] = setting((1.0, 1.0, 1.0), "w0, w1, w2 of L_main, L_1, L_2")
    live_softmax: float = setting(1.0, "weight of the code loss normalised over the codes on air", low=0.0)
    full_softmax: float = setting(0.25, "weight of the code loss normalised over all codes", low=0.0)
    copy: bool = setting(True, "codes and authors of the history can be copied (repeat consumption)")
    habits: bool = setting(True, "history items carry the viewer's habit features")
    identity: bool = setting(True, "rooms on air have scores of their own beyond their codes: identity and evidence")
    room_features: bool = setting(True, "the evidence head reads viewers and age of a room and its author's trend")
    seen: bool = setting(True, "the evidence head knows of broadcasts that the viewer has been in")
    similar: bool = setting(True, "the evidence head reads who shares an audience with what the viewer watched")
    combine: tuple[float, ...] = setting((0.2, 0.2, 1.0), "weights of codes, identity and evidence in a room's score "
                                         "until they are fitted on held-out views", low=0.0)
    identity_loss: float = setting(1.0, "weight of the identity loss over the rooms on air", low=0.0)
    author_negatives: int = setting(0, "authors drawn a step that the loss over all authors is estimated from; 0: all "
                                    "of them (a score an example and author: too much where there are millions)",
                                    low=0, high=10_000_000)
    author_items: bool = setting(True, "history items carry the author's own embedding")
    author_scale: float = setting(1.0, "length of an author's embedding (the tokenizer's) at the start", low=0.0)
    dropout: float = setting(0.1, "dropout on residual branches", low=0.0, high=0.95)
    activation_dtype: str = setting("float32", "dtype of activations", choices=("float32", "bfloat16"))
    scan_layers: bool = setting(False, "the main decoder's blocks are one loop over stacked parameters: compiled once "
                                "however many they are")
    remat: str = setting("none", "what the backward pass computes again: nothing; all but products with weights; "
                         "whole blocks", choices=("none", "dots", "full"))
    attention: str = setting("auto", "kernel of attention; auto: einsum on a CPU, jax.nn.dot_product_attention "
                             "elsewhere", choices=("auto", "einsum", "dot_product", "cudnn"))


@dataclass
class DecodingConfig:
    """Beam search over the rooms on air."""

    beams: int = setting(128, "beam width", low=1, high=65536)
    identity_weight: float = setting(1.0, "weight of a room's own score (identity and evidence, combined) "
                                     "beside its codes' log-probability; 0: codes alone", low=0.0)
    lookahead: bool = setting(True, "prefixes are ranked with the best room score below them")
    tie_break: str = setting("towers", "rooms of one id where codes alone decide: by the towers' score of user and "
                             "author, or in a fixed order", choices=("towers", "fixed"))
    capacity: int = setting(1024, "rooms that the live index can hold", low=1, high=16_777_216)


@dataclass
class TrainingConfig:
    """The supervised phase."""

    steps: int = setting(4000, "optimizer steps", low=1)
    batch_size: int = setting(64, "examples of a step, over all devices", low=1, high=2**20)
    learning_rate: float = setting(1e-3, "peak rate", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "linear warm-up", low=0)
    final_rate: float = setting(0.05, "last rate as a share of the peak (cosine)", low=0.0, high=1.0)
    weight_decay: float = setting(0.05, "AdamW weight decay", low=0.0, high=10.0)
    clip_norm: float = setting(1.0, "global gradient norm limit", low=1e-6)
    b2: float = setting(0.98, "AdamW second-moment decay", low=0.0, high=0.99999)
    held_out_share: float = setting(0.05, "share of the training views, the last ones, that only the weights of codes, "
                                    "identity and evidence are fitted on", low=0.0, high=0.5)
    log_every: int = setting(50, "steps between metric lines", low=1)
    eval_every: int = setting(1000, "steps between validations (0: only at the end)", low=0)
    accumulate: int = setting(1, "microbatches whose gradients make one step (batch_size is their sum)", low=1)
    profile_at: int = setting(0, "first step of a profiler trace, written under the workdir (0: none)", low=0)
    profile_steps: int = setting(5, "steps of the profiler trace", low=1)
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1)
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best", low=1)


@dataclass
class RewardConfig:
    """The reward model (Pantheon): a ranking model with a head per objective and an ensemble head."""

    dim: int = setting(64, "model width", low=2, high=65536)
    num_heads: int = setting(4, "attention heads over the history, a divisor of dim", low=1, high=512)
    mlp_dim: int = setting(128, "hidden width of the layer that all objectives share", low=1, high=262144)
    tower_dim: int = setting(32, "width of an objective's own hidden state", low=1, high=65536)
    dropout: float = setting(0.1, "dropout", low=0.0, high=0.95)
    candidates: int = setting(8, "candidate rooms of a training request (C)", low=2, high=4096)
    steps: int = setting(2000, "optimizer steps", low=1)
    batch_size: int = setting(64, "requests of a step, over all devices", low=1, high=2**20)
    learning_rate: float = setting(1e-3, "peak rate", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "linear warm-up", low=0)
    weight_decay: float = setting(0.05, "AdamW weight decay", low=0.0, high=10.0)
    ensemble_loss: float = setting(1.0, "weight of the ensemble head's loss", low=0.0)
    ensemble_labels: float = setting(0.1, "share of what was logged in the ensemble's targets; the rest are the heads' "
                                     "own probabilities, which say the same with less noise", low=0.0, high=1.0)
    objective_values: tuple[float, ...] = setting((0.0,) * 8, "what one of each objective is worth, in the order of "
                                                  "batch.OBJECTIVES (watch: of watch_cap minutes, on the log scale; "
                                                  "satisfaction: of the best answer, 0 if it is not given); "
                                                  "all 0: equal voices, however rare", low=0.0)
    read_on: float = setting(0.0, "chance that a person who does not click a room of a slate looks at the next one; "
                             "the score is then what a look is worth that may end the reading", low=0.0, high=0.999)
    rate_decay: float = setting(0.99, "decay of the running base rate of each objective", low=0.0, high=0.99999)
    ippo_every: int = setting(200, "steps between updates of the ensemble's objective weights", low=1)
    ippo_rate: float = setting(10.0, "how fast a lagging objective gains weight: factor exp(rate x AUC it lags)",
                               low=0.0)
    ippo_limit: float = setting(8.0, "largest factor between an objective's weight and an equal share", low=1.0)
    watch_cap: float = setting(120.0, "minutes of watching that count as 1 on the log scale", low=1e-3)
    log_every: int = setting(50, "steps between metric lines", low=1)
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1)


@dataclass
class AlignmentConfig:
    """Policy optimization beside the supervised loss (paper, section c)."""

    loss: str = setting("grpo", "policy loss", choices=("grpo", "ecpo", "gbpo", "dpo", "reinforce"))
    reward: str = setting("model", "reward: the reward model's score, logged feedback, or a mix",
                          choices=("model", "feedback", "mix"))
    mix: float = setting(0.5, "reward=mix: share of the logged feedback where it is known", low=0.0, high=1.0)
    share: float = setting(0.01, "share of the requests that get a policy term", low=0.0, high=1.0)
    rows: int = setting(8, "least requests of a policy term; a smaller share runs it in fewer steps", low=1)
    group_size: int = setting(16, "candidates of a request (G)", low=2, high=65536)
    sampler: str = setting("beam", "candidates: the best by beam search, drawn without replacement (Gumbel top-k), or "
                           "the rooms that were shown (needs logged feedback)", choices=("beam", "gumbel", "logged"))
    beams: int = setting(16, "beam width of proposals; at least group_size is used", low=1, high=65536)
    temperature: float = setting(1.0, "sampler=gumbel: scale of the noise", low=0.0)
    weight: float = setting(1.0, "weight of the policy term beside the supervised loss", low=0.0)
    supervised: float = setting(1.0, "weight of the supervised loss", low=0.0)
    clip: float = setting(0.2, "epsilon of GRPO and ECPO", low=0.0, high=1.0)
    delta: float = setting(0.1, "delta of ECPO", low=0.0)
    kl: float = setting(0.01, "weight of the penalty on leaving the reference (k3)", low=0.0)
    beta: float = setting(0.1, "beta of DPO", low=0.0)
    sync_every: int = setting(100, "steps between copies of the policy to the reference", low=1)
    steps: int = setting(1000, "optimizer steps", low=1)
    learning_rate: float = setting(1e-4, "peak rate", low=0.0, high=1.0)
    warmup_steps: int = setting(20, "linear warm-up", low=0)
    eval_every: int = setting(200, "steps between validations (0: only at the end)", low=0)
    checkpoint_every: int = setting(200, "steps between checkpoints", low=1)
    log_every: int = setting(1, "steps between metric lines", low=1)


@dataclass
class ServingConfig:
    """The live service (python -m experiments.serve)."""

    spare_authors: int = setting(256, "rows of the author table for streamers who were not in the training log", low=0,
                                 high=10_000_000)
    clock_ahead_seconds: float = setting(60.0, "an event further ahead of its arrival counts as of its arrival",
                                         low=0.0)
    late_hours: float = setting(24.0, "an event older than this when it arrives is left out", low=0.0)
    view_hours: float = setting(24.0, "a view without an end is over after this", low=0.01)
    room_hours: float = setting(72.0, "a room without an end is off air after this", low=0.01)
    grace_seconds: float = setting(600.0, "time after a room's end in which the ends of its views may arrive", low=0.0)
    known_events: int = setting(1_000_000, "ids of events that are remembered, so that each counts once", low=1)
    waiting_events: int = setting(10_000, "events that are kept until the room they name begins", low=0)
    max_batch: int = setting(16, "requests answered together, a power of two", low=1, high=4096)
    max_k: int = setting(64, "most rooms of an answer", low=1, high=65536)
    queue: int = setting(256, "requests that may wait; more are refused (429)", low=1)
    deadline_ms: float = setting(500.0, "time that a request may take unless it says otherwise", low=1.0)
    narrow_beams: int = setting(0, "beam width while requests queue up (0: always decoding.beams)", low=0, high=65536)
    narrow_at: int = setting(64, "waiting requests from which narrow_beams is used", low=1)
    snapshot_events: int = setting(50_000, "events between two snapshots of the state", low=1)


@dataclass
class MeshConfig:
    """Device mesh; -1 on one axis takes the devices that are left."""

    data: int = setting(-1, "devices over which the batch is split", low=-1)
    fsdp: int = setting(1, "devices over which parameters and batch are split", low=-1)
    tensor: int = setting(1, "devices over which widths are split", low=-1)


@dataclass
class Config:
    """A whole run."""

    name: str = setting("onelive", "name of the run, printed in reports")
    seed: int = setting(0, "seed of every random choice of the run", low=0, high=2**63 - 1)
    data: DataConfig = group(DataConfig)
    simulator: SimulatorConfig = group(SimulatorConfig)
    tokenizer: TokenizerConfig = group(TokenizerConfig)
    model: ModelConfig = group(ModelConfig)
    decoding: DecodingConfig = group(DecodingConfig)
    training: TrainingConfig = group(TrainingConfig)
    reward: RewardConfig = group(RewardConfig)
    alignment: AlignmentConfig = group(AlignmentConfig)
    serving: ServingConfig = group(ServingConfig)
    mesh: MeshConfig = group(MeshConfig)

    def validate(self) -> "Config":
        """Returns self, or raises ValueError naming the first field out of range."""
        check_ranges(self, "config")
        if self.model.num_heads % self.model.num_groups:
            raise ValueError(f"config.model.num_groups={self.model.num_groups} must divide "
                             f"config.model.num_heads={self.model.num_heads}")
        if self.model.dim % self.model.num_heads:
            raise ValueError(f"config.model.num_heads={self.model.num_heads} must divide "
                             f"config.model.dim={self.model.dim}")
        if self.model.attention == "cudnn" and self.model.activation_dtype == "float32":
            raise ValueError("config.model.attention='cudnn' has no float32 kernel: set config.model.activation_dtype="
                             "'bfloat16', or config.model.attention='auto'")
        if len(self.model.loss_weights) != self.tokenizer.levels:
            raise ValueError(f"config.model.loss_weights has {len(self.model.loss_weights)} weights, one is needed for "
                             f"each of config.tokenizer.levels={self.tokenizer.levels}")
        if not self.data.sequences or len(set(self.data.sequences)) < len(self.data.sequences):
            raise ValueError(f"config.data.sequences={self.data.sequences} must name one sequence or more, none twice")
        if self.training.warmup_steps >= self.training.steps:
            raise ValueError(f"config.training.warmup_steps={self.training.warmup_steps} must be below "
                             f"config.training.steps={self.training.steps}")
        if self.training.batch_size % self.training.accumulate:
            raise ValueError(f"config.training.accumulate={self.training.accumulate} must divide "
                             f"config.training.batch_size={self.training.batch_size}")
        for name, phase in (("reward", self.reward), ("alignment", self.alignment)):
            if phase.warmup_steps >= phase.steps:
                raise ValueError(f"config.{name}.warmup_steps={phase.warmup_steps} must be below "
                                 f"config.{name}.steps={phase.steps}")
        if len(self.reward.objective_values) not in (8, 9):
            raise ValueError(f"config.reward.objective_values has {len(self.reward.objective_values)} values, one is "
                             "needed for each of the 8 objectives of batch.ACTIONS, and one may be for satisfaction")
        if self.reward.dim % self.reward.num_heads:
            raise ValueError(f"config.reward.num_heads={self.reward.num_heads} must divide "
                             f"config.reward.dim={self.reward.dim}")
        if self.alignment.sampler == "logged" and self.alignment.reward == "model":
            raise ValueError("config.alignment.sampler='logged' learns from rooms that were shown: set "
                             "config.alignment.reward to 'feedback' or 'mix'")
        if self.serving.max_batch & (self.serving.max_batch - 1):
            raise ValueError(f"config.serving.max_batch={self.serving.max_batch} must be a power of two")
        m = self.model
        if not (m.live_softmax or m.full_softmax or (m.identity and m.identity_loss)):
            raise ValueError("config.model.live_softmax, config.model.full_softmax and the identity loss are all off: "
                             "there is nothing to learn")
        if self.data.source != "simulated" and not self.data.path:
            raise ValueError(f"config.data.path is empty: source={self.data.source!r} needs the path of a log "
                             "(--config.data.path=FILE)")
        return self


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """The inverse of `to_json`; an unknown field raises ValueError with its name."""
    return _from_dict(Config, json.loads(text), "config")


def _from_dict(cls, values: dict, path: str):
    known = {f.name: f for f in dataclasses.fields(cls)}
    result = cls()
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}.{name} is not a setting; known here: {', '.join(known)}")
        current = getattr(result, name)
        if dataclasses.is_dataclass(current):
            value = _from_dict(type(current), value, f"{path}.{name}")
        elif isinstance(current, tuple):
            value = tuple(value)
        setattr(result, name, value)
    return result
