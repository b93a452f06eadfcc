"""The deployed network: from uint8 pixels to all outputs, as a torch module."""
