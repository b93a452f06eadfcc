"""Predictions and explanations, and the files they are written to."""
