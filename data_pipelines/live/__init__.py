"""The same arrays from what has happened so far as batches/ makes from a whole log: events, people, rooms on air.

Events come in (from a bus, a server or a log), in any order and any number of times; requests, room features and new
content go out, to onelive_jax/serving/. No HTTP, no broker, no file but the snapshot that the state makes of itself.
"""
