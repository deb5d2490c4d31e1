"""The simulated platform: the one source whose true preferences are known.

A config and its seed come in. world.py is what is true, sessions.py plays people under the logging policy of feed.py,
reactions.py says what they do; simulation.py writes their log as canonical tables, which go on as any other log does.
platform.py lets a trained policy be played in the period after the log, against the heuristics of policies.py.

    python -m data_pipelines.simulator --users=1500 --authors=600 --out_dir=TABLES
"""
