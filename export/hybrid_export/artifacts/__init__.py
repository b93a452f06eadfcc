"""The files an export writes, one module for each kind."""
