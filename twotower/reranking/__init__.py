"""Re-ranking: what a list shows beside the best items, and how its effect is measured."""
