"""Which rooms now? The best rooms on air for a person at a moment, from a trained workdir.

    python -m experiments.recommend --workdir=W --user=ID --at=ROUND_OR_MS --k=10 [--phase=policy]

--user is the id of the log. --at is a time in milliseconds or, for a log in ten-minute rounds (Twitch), a round;
without it, the end of the log. Rooms are on air as *other* people's views, or their true lifetimes, show.
"""

import json
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.common.tower_scores import tie_breaker
    from experiments.stages.policy import load_phase
    from experiments.stages.recommend import find_user, format_rooms, moment, recommend
    from experiments.stages.tokenizer import load_tokenizer
    from onelive_jax.decoding.recommend import make_recommender

    values = absl_flags.FLAGS
    log = prepare(config, workdir)
    user, time_ms = find_user(log, values.user), moment(log, config, values.at)
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, _ = load_phase(config, workdir, log, values.phase)
    rank = make_recommender(model, config.decoding, min(values.k, log.num_authors))
    ties = tie_breaker(model, tokenizer, config, log)
    rooms = recommend(config, log, tokenizer.ids, rank, params, user, time_ms, ties)
    if values.json:
        print(json.dumps(rooms, indent=1))
    else:
        print(format_rooms(rooms) if rooms else "no room is on air at that moment")


if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_string("user", None, "id of the person, as in the log", required=True)
    absl_flags.DEFINE_integer("at", None, "when: milliseconds, or a ten-minute round (Twitch); default: the log's end")
    absl_flags.DEFINE_integer("k", 10, "rooms wanted", lower_bound=1)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy"), "whose parameters answer")
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table")
    flags.run(main)
