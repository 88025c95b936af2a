"""What a rig costs on this machine, as tables against the figures that it is meant to keep."""
