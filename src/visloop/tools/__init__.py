"""Visual tools behind one contract: their signatures, their backends, prompt tuning and the prompt pool."""
