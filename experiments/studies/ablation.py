"""What each part is worth: the supervised phase with one part changed at a time (python -m experiments.ablate)."""

from pathlib import Path

from experiments.common import study
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.training import metrics

# Name → settings that differ from the given config.
VARIANTS: dict[str, dict[str, object]] = {
    "full": {},
    "no_mtp": {"model.mtp": False},
    "no_gate": {"model.gate": False},
    "no_qk_norm": {"model.qk_norm": False},
    "no_item_time": {"model.item_time": False},
    "no_request_time": {"model.request_time": False},
    "separate_values": {"model.context_split": 2},
    "no_live_softmax": {"model.live_softmax": 0.0, "model.full_softmax": 1.0},
    "no_full_softmax": {"model.full_softmax": 0.0},
    "no_copy": {"model.copy": False},
    "no_habits": {"model.habits": False},
    "no_seen": {"model.seen": False},
    "no_room_features": {"model.room_features": False},
    "history_of_views": {"data.history_unit": "views"},
    "no_author_items": {"model.author_items": False},
    "codes_only": {"model.identity": False},
    "room_scores_only": {"decoding.identity_weight": 1000.0},  # identity and evidence, no codes
    "no_similar": {"model.similar": False},
    "paper_only": {"model.identity": False, "model.author_items": False, "model.copy": False, "model.habits": False,
                   "data.history_unit": "views", "model.live_softmax": 0.0, "model.full_softmax": 1.0},
    "zero_author_start": {"model.author_scale": 0.0},
    "codes_256": {"tokenizer.codes": 256},
    "sampled_authors": {"model.author_negatives": 512},
}
FIGURES = ("ndcg@10", "ndcg@10_repeat", "ndcg@10_new", "hr@1", "hr@10")


def validation_of(workdir: Path, step: int) -> dict[str, float]:
    """The validation figures of a finished run at the step whose parameters it kept."""
    line = next(line for line in metrics.read(workdir / "supervised")
                if line["step"] == step and "validation/ndcg@10" in line)
    return {name: line[f"validation/{name}"] for name in FIGURES if f"validation/{name}" in line}


def run_variant(config: Config, name: str, seed: int, workdir: Path) -> dict[str, float]:
    """Trains a variant (or finds it trained) and returns its validation figures.

    All variants of a seed share the log of "full", and its tokenizer unless they change it.
    """
    variant, folder = study.changed(config, VARIANTS[name], seed), workdir / str(seed) / name

    def validation() -> dict[str, float]:
        trained = study.train(variant, folder, study.changed(config, {}, seed), workdir / str(seed) / "full")
        return validation_of(folder, trained.figures["chosen_step"])

    return study.kept(folder / study.RESULT, variant, validation)


def format_variants(results: dict[str, list[dict[str, float]]]) -> str:
    """One line per variant: mean and standard deviation over seeds of every figure."""
    return table(["variant", *(figure.upper().replace("_", " ") for figure in FIGURES)],
                 [[name, *(study.over_seeds([row.get(figure) for row in rows]) for figure in FIGURES)]
                  for name, rows in results.items()])
