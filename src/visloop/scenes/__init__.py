"""The embedded world: scenes, their pictures, questions with exact reasoning, its verifier and its damaged copies."""
