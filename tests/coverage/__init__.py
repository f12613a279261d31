"""The coverage certificate: what moetrace counts on every architecture of transformers."""
