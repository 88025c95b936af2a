"""Liveliness of the stack's processes, as the arm watches it."""
