"""Recordings made into data sets for training, and data sets read, thinned out and looked at."""
