"""What a run will need, computed from its config and its model's: parameters, memory, steps, disk. Pure."""
