"""What rankings and predictions are worth: figures in NumPy, each with its interval.

Scores and labels come in, from any ranker; plain numbers go on to reports and to the choice of a checkpoint.
"""
