"""Franka Panda with a Robotiq 2F-85; licences beside the meshes."""
