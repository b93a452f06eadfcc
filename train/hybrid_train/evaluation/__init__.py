"""Metrics of a classifier, with intervals by patient."""
