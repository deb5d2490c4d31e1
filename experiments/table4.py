"""The paper's Table 4: throughput and latency of the lazy decoder of 6 and 3 layers, without and with MTP.

    python -m experiments.table4 --workdir=W [--config=…] [--rooms=12000] [--beams=128] [--batch=16] [--repeats=50]

The decoder alone, on this machine: `experiments.benchmark --what=serve` measures the service around it. The paper's
figures are of its GPU service: only the gains compare. Writes W/table4.json.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.benchmarks.report import machine, make_report
    from experiments.studies.table4 import format_table4, measure, sizes_of
    from onelive_jax.files import write_json

    values = absl_flags.FLAGS
    sizes = sizes_of(config, values.rooms, values.rooms)
    report = make_report("table4", lambda: {"table": measure(sizes, values.beams, values.batch, values.repeats)})
    write_json(workdir / "table4.json", report)
    print(format_table4(report["table"]))
    print(f"beam {values.beams}, batch {values.batch}, {values.rooms:,} rooms on air\n{machine(report)}")


if __name__ == "__main__":
    flags.define_config("world")
    absl_flags.DEFINE_integer("rooms", 12_000, "rooms on air", lower_bound=1)
    absl_flags.DEFINE_integer("beams", 128, "beam width", lower_bound=1)
    absl_flags.DEFINE_integer("batch", 16, "requests answered together", lower_bound=1)
    absl_flags.DEFINE_integer("repeats", 50, "timed answers of each row", lower_bound=2)
    flags.run(main)
