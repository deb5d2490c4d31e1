"""What rankings and predictions are worth: figures in NumPy, from scores and labels."""
