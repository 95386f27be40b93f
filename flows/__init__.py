"""Prefect flows: order, place, retries and record-keeping. Values are decided in ``visloop``."""

from flows._environment import set_environment

set_environment()
