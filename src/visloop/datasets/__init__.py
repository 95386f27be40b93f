"""Readers of outside data into samples, with counted skips."""
