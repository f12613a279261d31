"""Adapters: each module connects moetrace to the training framework it is named after."""
