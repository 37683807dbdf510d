"""transforms - weights and scales -> other weights with the same function. Pure functions on torch tensors."""
