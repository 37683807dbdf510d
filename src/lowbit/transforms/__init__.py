"""transforms - weights and statistics -> other weights with the same function. Pure functions on tensors; fold.py applies them."""
