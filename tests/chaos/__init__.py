"""The whole embedded run under real kills; `python -m tests.chaos_run` is its command."""
