"""Training of the model: losses and step of the supervised phase, and what every phase needs.

Batches come in; checkpoints go on to decoding/, reward/ and alignment/, metrics to files.
"""
