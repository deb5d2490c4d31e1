"""Answers from arrays while rooms come and go: the catalogue of rooms on air, batching, and the engine that owns the
device.

Arrays come in (data_pipelines/live/ makes them from events), ranked rooms go out. Nothing here knows HTTP, a broker or
a file; experiments/server/ puts those around it.
"""
