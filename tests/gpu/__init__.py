"""Tests that need an NVIDIA GPU, and what runs them on a node without network."""
