"""How well the heatmaps localize lesions, measured on phantoms."""
