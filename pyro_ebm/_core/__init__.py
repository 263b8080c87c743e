"""Ground floor: shapes, supports, raveling, errors and protocols. Knows torch and nothing of energies or Pyro."""
