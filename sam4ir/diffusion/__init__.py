"""Structure-modulated diffusion: schedules, forward process, samplers and their noise."""
