"""What draws are worth: ArviZ conversion, convergence, plots."""
