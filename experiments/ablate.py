"""What each part is worth: the supervised phase with one part changed at a time, judged on validation.

    python -m experiments.ablate --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W \
        [--variants=full,no_gate,…] [--seeds=0,1,2]

All variants of a seed share one tokenizer unless they change it (--seeds counts, not --seed). Each variant is a run of
its own under W/SEED/VARIANT, so a killed ablation resumes; the table is also W/ablation.json. The test period is never
touched.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.log import prepare
from experiments.common.workdir import save_config
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
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
    "identity_only": {"decoding.identity_weight": 1000.0},
    "paper_only": {"model.identity": False, "model.author_items": False, "model.copy": False, "model.habits": False,
                   "data.history_unit": "views", "model.live_softmax": 0.0, "model.full_softmax": 1.0},
    "zero_author_start": {"model.author_scale": 0.0},
    "codes_256": {"tokenizer.codes": 256},
    "sampled_authors": {"model.author_negatives": 512},
}
FIGURES = ("ndcg@10", "ndcg@10_repeat", "ndcg@10_new", "hr@1", "hr@10")


def changed(config: Config, settings: dict[str, object], seed: int) -> Config:
    """A copy of `config` with dotted settings replaced."""
    result = copy.deepcopy(config)
    result.seed = seed
    for name, value in settings.items():
        section, field = name.split(".")
        setattr(getattr(result, section), field, value)
    return result.validate()


def validation_of(workdir: Path, step: int) -> dict[str, float]:
    """The validation figures of a finished run at the step whose parameters it kept."""
    line = next(line for line in metrics.read(workdir / "supervised")
                if line["step"] == step and "validation/ndcg@10" in line)
    return {name: line[f"validation/{name}"] for name in FIGURES if f"validation/{name}" in line}


def run_variant(config: Config, name: str, seed: int, workdir: Path) -> dict[str, float]:
    """Trains a variant (or finds it trained) and returns its validation figures."""
    base = workdir / str(seed) / "full"
    full = changed(config, {}, seed)
    train_tokenizer(full, base, prepare(full, base))
    config, folder = changed(config, VARIANTS[name], seed), workdir / str(seed) / name
    folder.mkdir(parents=True, exist_ok=True)
    shares_tokenizer = not any(setting.startswith("tokenizer.") for setting in VARIANTS[name])
    for part in ("data", "examples", *(("tokenizer", "tokenizer.json") if shares_tokenizer else ())):
        if folder != base and (base / part).exists() and not (folder / part).exists():
            (shutil.copytree if (base / part).is_dir() else shutil.copy)(base / part, folder / part)
    log = prepare(config, folder)
    tokenizer = train_tokenizer(config, folder, log)
    _, _, figures = train_supervised(config, folder, log, tokenizer)
    save_config(config, folder)
    return validation_of(folder, figures["chosen_step"])


def format_variants(results: dict[str, list[dict[str, float]]]) -> str:
    """One line a variant: mean and, over several seeds, standard deviation of every figure."""
    lines = ["variant".ljust(22) + "  ".join(name.rjust(15) for name in FIGURES)]
    for name, rows in results.items():
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in rows if figure in row]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append((f"{np.mean(values):.4f}{spread}" if values else "-").rjust(15))
        lines.append(name.ljust(22) + "  ".join(cells))
    return "\n".join(lines)


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    unknown = set(values.variants) - VARIANTS.keys()
    if unknown:
        raise ValueError(f"--variants={','.join(sorted(unknown))}: not known; there are {', '.join(VARIANTS)}")
    table = workdir / "ablation.json"
    results: dict[str, list[dict[str, float]]] = json.loads(table.read_text()) if table.is_file() else {}
    for name in values.variants or VARIANTS:
        results[name] = [run_variant(config, name, int(seed), workdir) for seed in values.seeds]
        table.write_text(json.dumps(results, indent=1))
        print(format_variants({name: results[name]}), flush=True)
    print("\n" + format_variants(results))


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("variants", [], "variants to run; all when empty")
    absl_flags.DEFINE_list("seeds", ["0"], "training seeds")
    flags.run(main)
