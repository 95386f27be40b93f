"""Frozen records that flow between the stages, and how they are kept on disk."""
