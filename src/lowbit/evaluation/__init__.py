"""evaluation - model -> numbers. One file is one measure; none knows a method by name."""
