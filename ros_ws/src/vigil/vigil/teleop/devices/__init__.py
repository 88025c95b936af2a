"""Operator's devices, one small class each behind `vigil.teleop.device.Device`."""
