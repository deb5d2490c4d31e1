"""What becomes a semantic id: behaviour-aligned towers, residual k-means, codes of (author, moment)."""
