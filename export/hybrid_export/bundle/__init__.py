"""Write a bundle: staged files that appear together, and what goes with the models."""
