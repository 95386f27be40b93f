"""Metrics with confidence intervals, ablation systems, benchmark scores, tables and plots."""
