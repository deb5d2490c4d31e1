"""The arrays of onelive_jax/batch.py from a log: requests, rooms on air, training batches, feedback.

In come people's views and who is on air (data_pipelines/log) or the played platform's requests (simulator). features.py
is the one truth about a history and a room; the rest gather its arguments: training.py and feedback.py from a log,
played.py from the platform, loader.py in a resumable order. Out go NumPy batches, to onelive_jax's steps and decoding.
"""
