"""Training and evaluation: the one optimizer loop of all methods and kinds."""
