"""Variable elimination on a static plan, with plates."""
