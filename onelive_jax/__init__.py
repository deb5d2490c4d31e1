"""OneLive-JAX: a generative recommender for live streaming."""

__version__ = "0.1.0"
