"""Robot models and how they were made."""
