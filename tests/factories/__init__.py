"""Makers of small models, files and bundles."""
