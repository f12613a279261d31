"""The exactly-once matrix: a model in every mode, one loop, and what both leave behind."""
