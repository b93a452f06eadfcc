"""Data: from files and tables to batches of pixels."""
