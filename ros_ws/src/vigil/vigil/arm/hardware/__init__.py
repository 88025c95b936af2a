"""The arm room's side of the hardware boundary: topics, actions and services of the robots' drivers."""
