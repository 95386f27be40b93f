"""Prompt templates as versioned files, one folder per style."""
