"""AWS in training loops of other frameworks: complete scripts to copy from."""
