"""From files and tables to batches of pixels."""
