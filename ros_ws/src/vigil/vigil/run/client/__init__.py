"""The side of a running rig that a program sees: its services, and the newest of its topics."""
