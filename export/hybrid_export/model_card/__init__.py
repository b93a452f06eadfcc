"""MODEL_CARD.md."""
