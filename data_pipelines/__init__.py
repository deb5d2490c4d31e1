"""Logs of a live-streaming platform: readers, canonical tables, a simulated platform, stored examples and batches."""
