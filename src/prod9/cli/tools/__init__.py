"""Small commands: configs, plan, weights, export, doctor."""
