"""Insight-V: grow reasoning data, assess it, build training sets and preference pairs, and answer with two agents."""
