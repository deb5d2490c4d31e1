"""The best rooms of everybody at a moment, as a Parquet table: user, rank, room, author, score, viewers.

    python -m experiments.recommend_all --workdir=W --out=F.parquet [--at=ROUND_OR_MS] [--k=10] [--phase=policy]

It asks the service as of that moment (without HTTP), so that the answers are those that would be served.
--config.serving.max_batch=256 answers more people together.
"""

import io
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.server.service import from_log
    from experiments.stages.policy import load_phase
    from experiments.stages.recommend import everybody, moment
    from experiments.stages.tokenizer import load_tokenizer
    from onelive_jax.files import write_whole

    values = absl_flags.FLAGS
    log = prepare(config, workdir)
    time_ms = moment(log, config, values.at)
    if values.k > config.serving.max_k:
        raise ValueError(f"--k={values.k} is more than config.serving.max_k={config.serving.max_k}")
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, name = load_phase(config, workdir, log, values.phase)
    service = from_log(config, log, tokenizer, model, params, name, time_ms)
    frame, seconds = everybody(service, time_ms, values.k)
    buffer, out, people = io.BytesIO(), Path(values.out).expanduser(), len(service.state.users)
    frame.write_parquet(buffer)
    write_whole(out, buffer.getvalue())
    print(f"{out}: {len(frame)} rows of {people} people, {people / seconds:.0f} people a second once compiled")


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_string("out", None, "the table (.parquet)", required=True)
    absl_flags.DEFINE_integer("at", None, "when: milliseconds, or a ten-minute round (Twitch); default: the log's end")
    absl_flags.DEFINE_integer("k", 10, "rooms of each person", lower_bound=1)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy"), "whose parameters answer")
    flags.run(main)
