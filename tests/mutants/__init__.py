"""Copies of moetrace with one fault each, which the exactly-once matrix has to see."""
