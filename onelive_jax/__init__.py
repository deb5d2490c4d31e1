"""OneLive-JAX: a generative recommender for live streaming. The library; arrays in, arrays out.

tokenizer/ → model/ → decoding/ → evaluation/; training/ fits the model, reward/ and alignment/ what rankings are worth.
sharding/ places arrays on devices for all of them. tests/test_walls.py lists which package may import which.
"""

__version__ = "0.1.0"
