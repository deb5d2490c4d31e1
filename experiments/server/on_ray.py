"""The same service on Ray Serve: replicas behind one Redis stream, each the core and the interface as they are."""

from pathlib import Path

from ray import serve

from experiments.server import start
from experiments.server.app import make_app
from onelive_jax.config import Config


def run(config: Config, workdir: Path, options: start.Options, replicas: int, gpus: float) -> None:
    """Starts so many replicas and serves until Ctrl-C. A replica takes requests once every program is compiled."""
    def build():
        live = start.open_live(config, workdir, options)
        start.warm_up(live)
        return make_app(live, start.limits_of(options))

    deployment = serve.deployment(serve.ingress(build)(), name="onelive", num_replicas=replicas,
                                  ray_actor_options={"num_cpus": 1, "num_gpus": gpus}, max_ongoing_requests=256)
    serve.start(http_options={"host": options.host, "port": options.port})
    serve.run(deployment.bind(), name="onelive", route_prefix="/", blocking=True)
