"""Distillation and RL methods: what is sampled, which tokens are trained, and their loss."""
