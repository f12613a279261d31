"""Settings of the experiments."""
