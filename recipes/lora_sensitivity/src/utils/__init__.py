"""Logs of gradient norms and pictures of them."""
