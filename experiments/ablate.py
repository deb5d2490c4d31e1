"""What each part is worth: the supervised phase with one part changed at a time, judged on validation.

    python -m experiments.ablate --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W \\
        [--variants=full,no_gate,…] [--seeds=0,1,2]

All variants of a seed share one tokenizer unless they change it (--seeds counts, not --seed). Each variant is a run of
its own under W/SEED/VARIANT, so a killed ablation resumes; the table is also W/ablation.json. The test period is never
touched.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.studies.ablation import VARIANTS, format_variants, run_variant
    from onelive_jax.files import write_json

    values = absl_flags.FLAGS
    if unknown := set(values.variants) - VARIANTS.keys():
        raise ValueError(f"--variants={','.join(sorted(unknown))}: there are {', '.join(VARIANTS)}")
    results: dict[str, list[dict[str, float]]] = {}
    for name in values.variants or VARIANTS:
        results[name] = [run_variant(config, name, int(seed), workdir) for seed in values.seeds]
        write_json(workdir / "ablation.json", results)
        print(format_variants({name: results[name]}), flush=True)
    print("\n" + format_variants(results))


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("variants", [], "variants to run; all when empty")
    absl_flags.DEFINE_list("seeds", ["0"], "training seeds")
    flags.run(main)
