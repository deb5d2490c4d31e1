"""Learns from the stream: one pass over what happens, in the order of time, published every few minutes of it.

    python -m experiments.train_stream --workdir=W [--init_from=W/supervised] [--source=LOG|FOLDER|redis://HOST:PORT]

Without --source, W's own log behind its training period is played. A folder of canonical tables is a log that goes on
where W's ends; a folder with a server's events.sqlite, or with events as lines of JSON in *.jsonl, and redis://… are
what a live service took in. A view is learned from when it is over, with what was known when it began.

Every publication is a checkpoint in W/stream, and W/stream.json names it: experiments.serve --phase=stream takes it
while it runs. A killed run goes on from the last one, and ends with the same parameters, bit for bit. --follow waits
for more at the end of a live source; Ctrl-C stops.
"""

import dataclasses
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.workdir import phase_of
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    init_from = Path(values.init_from).expanduser() if values.init_from else workdir / "supervised"
    phase_of(init_from)  # a mistyped folder is refused before anything is loaded
    from experiments.common.log import prepare
    from experiments.stages.event_source import open_source
    from experiments.stages.stream import StreamPlan, format_report, train_stream
    from experiments.stages.tokenizer import load_tokenizer

    log = prepare(config, workdir)
    plan = StreamPlan(**{field.name: getattr(values, field.name) for field in dataclasses.fields(StreamPlan)})
    source, from_ms = open_source(values.source, config, log, values.follow)
    made = train_stream(config, workdir, log, load_tokenizer(config, workdir, log), init_from, source, from_ms,
                        values.source, plan)
    print(format_report(made))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_string("init_from", None, "folder of the phase whose parameters it starts from (W/supervised)")
    absl_flags.DEFINE_string("source", "", "log or events to learn from; W's own log if not given")
    absl_flags.DEFINE_bool("follow", False, "waits for more events at the end of a live source")
    absl_flags.DEFINE_float("publish_minutes", 5.0, "minutes of the stream between two publications", lower_bound=0.01)
    absl_flags.DEFINE_float("save_minutes", 0.0, "least minutes of the stream between two checkpoints; 0: each "
                            "publication is one", lower_bound=0.0)
    absl_flags.DEFINE_float("label_minutes", 30.0, "a longer view is learned from after so much of it",
                            lower_bound=0.01)
    absl_flags.DEFINE_integer("batch_size", 64, "examples of a step", lower_bound=1)
    absl_flags.DEFINE_float("learning_rate", 2e-4, "constant, after the warm-up", lower_bound=0.0, upper_bound=1.0)
    absl_flags.DEFINE_integer("warmup_steps", 20, "steps of linear warm-up", lower_bound=0)
    flags.run(main)
