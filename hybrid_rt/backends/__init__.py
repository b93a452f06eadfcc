"""Inference backends: one small class each behind the Session protocol."""
