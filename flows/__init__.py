"""Prefect flows: order, place, retries and record-keeping. Values are decided in ``visloop``."""
