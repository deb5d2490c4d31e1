"""What a model is compared with: heuristics that count."""
