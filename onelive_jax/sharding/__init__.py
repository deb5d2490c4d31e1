"""Where arrays lie: the mesh, the one table of rules, and the placement of activations.

Any package may import this one. Parameters come in with logical axis names and leave with shardings.
"""
