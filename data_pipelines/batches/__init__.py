"""The arrays of onelive_jax/batch.py, made from a log when they are needed: requests, rooms on air, feedback.

Training, evaluation and the played platform take their batches here.
"""
