"""The parts of the bootstrapping experiment: its worlds, its trainings, its arms, its page."""
