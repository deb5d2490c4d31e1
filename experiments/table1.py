"""The paper's Table 1 beside ours: utilization and collisions of ids, by embedding, quantizer and size.

    python -m experiments.table1 --workdir=W [--config.simulator.authors=200000]

Towers are trained on the views of a simulated platform. Every author with content then gets one id, from its content
of the last moment (MLLM: x_30s and x_pool as they come; IA: the author tower's output), by residual k-means and, for
IA, by an RQ-VAE. The paper has 4 million authors; code counts are scaled by the cube root of the ratio of authors, so
that there are as many authors for each possible id. Each ordering in the paper is checked here. Codebooks are fitted by
config.tokenizer.kmeans_*; with kmeans_balance, ids keep to its bound too. Each row is kept in W/rows: a killed run
resumes.
"""

from pathlib import Path

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.studies.table1 import format_table1, make_rows
    from onelive_jax.files import write_json

    rows = make_rows(config, workdir, prepare(config, workdir))
    write_json(workdir / "table1.json", [{"key": key} | row for key, row in rows.items()])
    print(format_table1(rows))
    authors = next(iter(rows.values()))["authors"]
    print(f"\n{authors:,} authors; utilization (L0 … L0xL1) and collision rates by the paper's definitions; "
          f"{workdir / 'table1.json'}")


if __name__ == "__main__":
    flags.define_config("table1")
    flags.run(main)
