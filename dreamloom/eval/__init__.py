"""Metrics and protocols; results to tables and pictures."""
