"""What a training run needs beside its model: state, shardings, checkpoints, metrics."""
