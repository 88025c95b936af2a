"""Subscriptions that are read beside the executor."""
