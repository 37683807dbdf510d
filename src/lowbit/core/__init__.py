"""core - what every room may use: errors, shelves, the chain of steps, devices. Imports nothing but torch, and that late."""
