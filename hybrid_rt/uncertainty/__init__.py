"""Prediction sets, distance to the training data, decisions."""
