"""The embedded default: tiny instances of real architectures, trained from scratch by recipe, and where they lie."""
