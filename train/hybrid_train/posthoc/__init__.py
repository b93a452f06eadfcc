"""What is fitted on validation data when the weights are final."""
