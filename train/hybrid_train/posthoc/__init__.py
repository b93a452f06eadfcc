"""Fits on validation data after the last epoch."""
