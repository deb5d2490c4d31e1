"""What becomes a semantic id: behaviour-aligned towers, residual k-means, codes of (author, moment).

Views → `tower_training.train_towers` → `towers.author_embeddings` (IA embedding) → `residual_kmeans.fit` / `encode`
→ `semantic_ids.IdTable`, which answers for any author and moment.
"""
