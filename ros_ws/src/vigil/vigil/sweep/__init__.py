"""Which sampler to deploy: latency, action error and closed-loop success of all that a bundle offers."""
